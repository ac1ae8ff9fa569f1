"""A whole run from its recipe: what it writes, how it stops, resumes and refuses."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers as hf
from datasets import Dataset

import tiny_run
import tiny_tokenizers
from crosstill.errors import CheckpointError, ConfigError, TrustError
from crosstill.training.recipe import load_recipe
from crosstill.training.rewording import REWORDED
from crosstill.training.run import distill

KEYS = {
    "teacher_divergence_before",
    "teacher_divergence_after",
    "gap_closed",
    "teacher_bits_per_byte",
    "student_bits_per_byte_before",
    "student_bits_per_byte_after",
    "steps",
    "student_tokens",
    "seconds",
    "aligned_byte_fraction",
    "rows_skipped",
    "objective",
    "seed",
    "versions",
}


UNMEASURED = {"prompts": {}, "eval_texts": []}


def recipe_of(folder, **changes):
    return load_recipe(tiny_run.make_run(folder), changes)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = recipe_of(folder, save_steps=1, divergence_steps=1, max_steps=3)
    return folder, recipe, distill(recipe)


def test_the_summary_has_every_key_and_is_what_was_returned(done):
    folder, _, summary = done
    written = json.loads((folder / "out" / "summary.json").read_text())
    assert set(written) >= KEYS
    assert written == json.loads(json.dumps(summary))
    assert (written["steps"], written["seed"], written["objective"]) == (3, 42, "alm")
    assert written["teacher_divergence_before"] > 0.1
    assert written["recipe"]["training"]["max_steps"] == 3


def test_the_files(done):
    out = done[0] / "out"
    names = {path.name for path in out.iterdir()}
    assert names >= {"model", "metrics.jsonl", "summary.json", "report.html", "alignment.html"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [x["step"] for x in lines if "eval_divergence" in x] == [0, 1, 2]
    assert "<html" in (out / "report.html").read_text()


def test_the_model_loads_with_plain_transformers(done):
    folder, _, _ = done
    model = hf.AutoModelForCausalLM.from_pretrained(folder / "out" / "model")
    trained = hf.AutoModelForCausalLM.from_pretrained(folder / "out" / "checkpoint-3")
    ids = torch.arange(5, 25)[None]
    assert torch.equal(model(ids).logits, trained(ids).logits)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder / "out" / "model")
    original = hf.AutoTokenizer.from_pretrained(folder / "student")
    text = "Der Größe nach 東京 😀\r\n\u2028 x"
    assert tokenizer(text).input_ids == original(text).input_ids


def test_a_finished_run_is_neither_repeated_nor_overwritten(done):
    folder, recipe, summary = done
    before = (folder / "out" / "model" / "model.safetensors").stat().st_mtime_ns
    assert distill(recipe, resume=True)["seconds"] == summary["seconds"]
    with pytest.raises(ConfigError, match="not empty"):
        distill(recipe)
    assert (folder / "out" / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_overwrite_keeps_the_old_run_under_another_name(tmp_path):
    first = distill(recipe_of(tmp_path, **UNMEASURED))
    second = distill(recipe_of(tmp_path, **UNMEASURED), overwrite=True)
    assert first["teacher_divergence_before"] is None
    assert second["steps"] == first["steps"]
    old = list(tmp_path.glob("out.replaced-*"))
    assert len(old) == 1
    assert json.loads((old[0] / "summary.json").read_text())["seconds"] == first["seconds"]


def test_another_tokenizer_for_the_student(tmp_path):
    target = tiny_tokenizers.byte_level_bpe(vocab_size=350)
    target.save_pretrained(tmp_path / "target")
    summary = distill(recipe_of(tmp_path, student_tokenizer=str(tmp_path / "target")))
    assert summary["steps"] == 2
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_input_embeddings().num_embeddings == len(target)
    saved = hf.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert saved.get_vocab() == target.get_vocab()


def test_a_student_of_bytes(tmp_path):
    summary = distill(recipe_of(tmp_path, student_tokenizer="bytes"))
    assert summary["steps"] == 2
    saved = hf.AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert saved.encode("\u00e9", add_special_tokens=False) == [195, 169]
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.get_input_embeddings().num_embeddings == len(saved)


@pytest.mark.parametrize("share", [0, 0.5])
def test_words_that_the_student_must_spell_are_put_in_if_asked_for(tmp_path, share):
    recipe = recipe_of(tmp_path, reword=share, max_steps=2, **UNMEASURED)
    distill(recipe)
    files = list((tmp_path / "out" / REWORDED).glob("*.arrow"))
    assert len(files) == bool(share)
    if share:
        read = Dataset.from_file(str(files[0]))
        assert len(read) == 4  # two steps of two rows
        texts = {row.get("text") for row in tiny_run.ROWS}
        assert any(row["text"] not in texts for row in read)
    again = distill(load_recipe(tmp_path / "recipe.yaml", {"reword": share, "max_steps": 2,
                                **UNMEASURED}), resume=True)  # fmt: skip
    assert again["steps"] == 2


def test_an_adapter_is_saved_and_merged(tmp_path):
    pytest.importorskip("peft")
    peft = {"r": 4, "target_modules": ["q_proj", "down_proj"]}
    distill(recipe_of(tmp_path, learning_rate=0.1, peft=peft))
    assert (tmp_path / "out" / "adapter" / "adapter_config.json").exists()
    merged = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    moved = merged.model.layers[0].mlp.down_proj.weight - base.model.layers[0].mlp.down_proj.weight
    assert 1 <= torch.linalg.matrix_rank(moved, rtol=1e-3) <= 4
    with pytest.raises(ConfigError, match="peft"):
        distill(recipe_of(tmp_path / "b", peft={"rank": 4}))


def test_code_of_a_model_is_not_run(tmp_path):
    recipe = recipe_of(tmp_path)
    path = tmp_path / "teacher" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (tmp_path / "teacher" / "evil.py").write_text("open('sentinel', 'w')")
    with pytest.raises(TrustError):
        distill(recipe)
    assert not (tmp_path / "teacher" / "sentinel").exists()


LONG = {**UNMEASURED, "max_steps": 2000, "save_steps": 5000, "logging_steps": 1}
INTERRUPTED = """
import json, sys
from crosstill.training.recipe import load_recipe
from crosstill.training.rewording import REWORDED
from crosstill.training.run import distill
distill(load_recipe(sys.argv[1], json.loads(sys.argv[2])))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -2), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_step_saves_and_leaves(tmp_path, number, code):
    recipe = tiny_run.make_run(tmp_path)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(recipe), json.dumps(LONG)],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.05)
    child.send_signal(number)
    assert child.wait(60) == code
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 2000
    with pytest.raises(CheckpointError, match="max_steps: 2000"):
        distill(load_recipe(recipe, {**LONG, "max_steps": step + 2}), resume=True)
