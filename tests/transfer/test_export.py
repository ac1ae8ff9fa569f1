import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_models
import tiny_tokenizers
from crosstill.errors import CheckpointError
from crosstill.transfer import export as module
from crosstill.transfer.export import export

TORTURE = ["The cat", "a\u2028b\x00\ufeffc", "e\u0301 \u1100\u1161 \U0001f600", "  \n\t x", ""]

READER = """
import hashlib, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
texts = json.loads(sys.argv[2])
with torch.no_grad():
    logits = model(torch.tensor([[5, 9, 2, 77, 31]])).logits
print(json.dumps({
    "ids": [tokenizer.encode(text) for text in texts],
    "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    "modules": [name for name in sys.modules if name.startswith("crosstill")],
}))
"""


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizers.byte_level_bpe()


@pytest.mark.parametrize("tied", [True, False])
def test_p07_plain_transformers_reads_it_in_a_fresh_process(tokenizer, tmp_path, tied):
    import hashlib

    model = tiny_models.llama(len(tokenizer), tied=tied)
    folder = export(model, tokenizer, tmp_path / "out" / "model")
    with torch.no_grad():
        logits = model(torch.tensor([[5, 9, 2, 77, 31]])).logits
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder), json.dumps(TORTURE)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["modules"] == []
    assert found["ids"] == [tokenizer.encode(text) for text in TORTURE]
    assert found["logits"] == hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    assert not list(folder.glob("*.bin"))


def test_an_interrupted_export_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    model = tiny_models.llama(len(tokenizer))

    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(model, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_stays(tokenizer, tmp_path):
    model = tiny_models.llama(len(tokenizer))
    (tmp_path / "precious").write_text("thesis")
    with pytest.raises(CheckpointError, match="nothing there is overwritten"):
        export(model, tokenizer, tmp_path)
    with pytest.raises(CheckpointError, match="not an empty folder"):
        export(model, tokenizer, tmp_path / "precious")
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    (tmp_path / "empty").mkdir()
    assert (export(model, tokenizer, tmp_path / "empty") / "model.safetensors").exists()


def test_what_was_written_wrongly_is_noticed(tokenizer, tmp_path, monkeypatch):
    model = tiny_models.llama(len(tokenizer))
    flush_order = []

    def save_then_damage(folder, **kwargs):
        type(model).save_pretrained(model, folder, **kwargs)
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] += 1
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(model, "save_pretrained", save_then_damage)
    monkeypatch.setattr(module, "_flush", flush_order.append)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight was not saved"):
        export(model, tokenizer, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    assert export(model, tokenizer, tmp_path / "unchecked", verify=False).is_dir()
