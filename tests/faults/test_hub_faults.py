"""What hostile model folders and data sets are refused for; the numbers name the attacks."""

import json
import pickle

import pytest
import torch

import tiny_models
import tiny_tokenizers
from crosstill import hub
from crosstill.errors import CheckpointError, ConfigError, DataError, TokenizerError, TrustError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tiny_models.llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def sentinel(tmp_path):
    """A file that only hostile code would create."""
    return tmp_path / "the-code-ran"


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def plant_code(folder, sentinel):
    (folder / "evil.py").write_text(
        f"from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"open({str(sentinel)!r}, 'w').close()\n"
        f"class Config(LlamaConfig): pass\n"
        f"class Model(LlamaForCausalLM): config_class = Config\n"
    )
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", auto_map=auto_map)


def test_s01_code_is_refused_before_it_is_imported(folder, sentinel):
    plant_code(folder, sentinel)
    for load in (hub.load_model, hub.load_config, hub.load_tokenizer):
        with pytest.raises(TrustError, match=r"auto_map.*--trust-remote-code"):
            load(folder)
    assert not sentinel.exists()


def test_s01_the_same_code_runs_when_a_person_says_so(folder, sentinel, monkeypatch, tmp_path):
    import transformers.dynamic_module_utils as modules

    monkeypatch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    plant_code(folder, sentinel)
    hub.load_config(folder, trust_remote_code=True)
    assert sentinel.exists(), "otherwise the test above proves nothing"


def test_s01_code_of_a_tokenizer(folder):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Slow", None]})
    with pytest.raises(TrustError, match=r"tokenizer_config\.json.*auto_map"):
        hub.load_tokenizer(folder)


def test_s02_a_file_does_not_vote_on_trust(folder):
    edit(folder / "config.json", trust_remote_code=True)
    with pytest.raises(TrustError, match="a file never decides on trust"):
        hub.load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation_internal", "someone/kernel"),
        ("_experts_implementation_internal", "someone/kernel"),
        ("_anything", 1),
        ("attn_implementation", "someone/kernel"),
        ("attn_implementation", {"text_config": "someone/kernel"}),
    ],
)
def test_s03_private_keys_and_kernels(folder, key, value):
    edit(folder / "config.json", **{key: value})
    with pytest.raises(TrustError, match=key):
        hub.load_model(folder)


def test_s03_private_keys_of_inner_configs(folder):
    edit(folder / "config.json", text_config={"_attn_implementation_internal": "someone/kernel"})
    with pytest.raises(TrustError, match="_attn_implementation_internal"):
        hub.load_config(folder)


def test_s03_harmless_notes_pass(folder):
    edit(folder / "config.json", _name_or_path="someone/model", _commit_hash="a" * 40)
    hub.load_model(folder)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return (open, (str(self.sentinel), "w"))


def test_s04_s05_pickles_are_never_opened(folder, sentinel):
    weights = folder / "pytorch_model.bin"
    (folder / "model.safetensors").unlink()
    torch.save({"x": Payload(sentinel)}, weights)
    with pytest.raises(TrustError, match=r"only pytorch_model\.bin.*safetensors") as caught:
        hub.load_model(folder)
    assert caught.value.exit_code == 2
    assert not sentinel.exists()
    torch.load(weights, weights_only=False)
    assert sentinel.exists(), "otherwise the lines above prove nothing"


def test_s05_a_pickle_beside_the_weights_is_ignored(folder, sentinel):
    torch.save({"x": Payload(sentinel)}, folder / "pytorch_model.bin")
    (folder / "optimizer.pt").write_bytes(pickle.dumps(Payload(sentinel)))
    hub.load_model(folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "link"])
def test_s07_shards_outside_the_folder(folder, shard):
    (folder.parent / "outside.safetensors").write_bytes(b"")
    if shard == "link":
        (folder / "link").symlink_to(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TrustError, match="outside the model's folder"):
        hub.load_model(folder)


def test_s07_a_missing_shard(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors is missing"):
        hub.load_model(folder)


def test_the_layout_of_a_hub_cache_is_inside(folder):
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    snapshot = folder.parent / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(blobs / file.name)
    hub.load_model(snapshot)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "llama", "model_type": "gpt2"}', "given twice"),
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ("\xff", "not valid JSON"),
    ],
)
def test_odd_configs(folder, content, message):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        hub.load_model(folder)


def test_an_unknown_architecture(folder):
    edit(folder / "config.json", model_type="no-such-model")
    with pytest.raises(CheckpointError, match="no-such-model"):
        hub.load_model(folder)
    with pytest.raises(CheckpointError, match="no-such-model"):
        hub.load_config(folder)


def test_a_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="no tokenizer can be loaded"):
        hub.load_tokenizer(folder)


def test_s12_a_data_set_that_is_a_script(tmp_path, sentinel):
    script = tmp_path / "rows" / "rows.py"
    script.parent.mkdir()
    script.write_text(f"open({str(sentinel)!r}, 'w').close()")
    with pytest.raises((TrustError, ConfigError, DataError)):
        hub.load_dataset(str(script.parent))
    with pytest.raises(TrustError, match="script"):
        hub.load_dataset(str(script))
    assert not sentinel.exists()
