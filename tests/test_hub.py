import json
import logging
import shutil
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
import tiny_tokenizers
from crosstill import hub
from crosstill.errors import CheckpointError, ConfigError, TokenizerError, TrustError


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tiny_models.llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def edit(file, **changes):
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def test_a_model_comes_back_as_it_was_saved(folder):
    model = hub.load_model(folder, dtype="float32")
    expected = tiny_models.llama(model.config.vocab_size).state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_tokenizer_and_config(folder):
    tokenizer = hub.load_tokenizer(folder)
    assert tokenizer.get_vocab() == tiny_tokenizers.byte_level_bpe().get_vocab()
    assert hub.load_config(folder).vocab_size == len(tokenizer)


def test_dtype(folder):
    assert hub.load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_missing_tensor_is_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys.*layers\.1\.mlp\.up_proj"):
        hub.load_model(folder)


def test_an_unexpected_tensor_is_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.extra.weight"] = torch.zeros(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected keys.*extra"):
        hub.load_model(folder)


def test_a_tensor_of_another_shape_is_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.zeros(31)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mismatched keys.*model\.norm\.weight"):
        hub.load_model(folder)


def test_a_damaged_file_is_an_error(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        hub.load_model(folder)


def test_an_untied_head_must_be_there(tmp_path):
    tiny_models.llama(300, tied=False).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lm_head"):
        hub.load_model(tmp_path)


def test_a_mistyped_path_names_the_nearest(folder):
    with pytest.raises(ConfigError, match=r"modle does not exist.*Did you mean .*/model\?"):
        hub.load_model(folder.parent / "modle")
    with pytest.raises(ConfigError, match=r"Did you mean .*/model\?"):
        hub.load_tokenizer(folder.parent / "mode" / "checkpoint-3")
    with pytest.raises(ConfigError, match="is a file"):
        hub.load_model(folder / "config.json")


def test_a_hub_name_without_a_hub(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_args, **_kwargs):
        raise LocalEntryNotFoundError("nothing here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"someone/model.*nor can the hub be reached") as caught:
        hub.load_model("someone/model")
    assert caught.value.exit_code == 2


def test_a_hub_model_downloads_listed_files_only(saved, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub.load_model("someone/model", revision="main")
    (_, first, small), (_, second, every) = asked
    assert first == "main"
    assert second == saved.name, "the weights come from the commit whose config was checked"
    assert not any("safetensors" in pattern for pattern in small)
    assert not any(p.endswith((".py", ".bin", ".pt", ".pkl")) or p == "*" for p in every)


def test_code_of_a_hub_model_needs_a_full_commit_hash(monkeypatch):
    with pytest.raises(TrustError, match="full commit hash"):
        hub.load_model("someone/model", trust_remote_code=True, revision="main")


def test_code_of_a_hub_model_is_announced(saved, monkeypatch, caplog):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: str(saved))
    with caplog.at_level(logging.WARNING):
        hub.load_model("someone/model", trust_remote_code=True, revision="a" * 40)
    assert "running code of someone/model" in caplog.text


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        hub.load_tokenizer(tmp_path)


def test_a_slow_tokenizer_is_refused(folder, monkeypatch):
    from transformers import AutoTokenizer, PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_a, **_k: Slow())
    with pytest.raises(TokenizerError, match="slow tokenizer"):
        hub.load_tokenizer(folder)


def test_a_data_set_that_is_not_there(monkeypatch):
    import datasets

    def offline(*_args, **_kwargs):
        raise ConnectionError("no hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ConfigError, match="someone/rows"):
        hub.load_dataset("someone/rows")


def test_several_gguf_files_are_not_guessed_at(tmp_path):
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ConfigError, match=r"a\.gguf, b\.gguf"):
        hub.load_model(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        hub.load_gguf(tmp_path / "c.gguf")


def test_a_damaged_gguf_file(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(CheckpointError, match=r"a\.gguf"):
        hub.load_model(tmp_path)
