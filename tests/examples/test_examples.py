"""The examples for other people's training loops run, on tiny models of two tokenizers."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import tiny_models
import tiny_tokenizers

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = (*tiny_tokenizers.TEXTS, "One, two, three, four, five, six, seven, eight.")
ROWS = [{"text": text} for text in TEXTS]


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a student and a teacher whose tokenizers and sizes differ."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "student": (tiny_tokenizers.byte_level_bpe(vocab_size=300), {}),
        "teacher": (tiny_tokenizers.byte_level_bpe(vocab_size=420), {"hidden_size": 48}),
    }
    for seed, (role, (tokenizer, more)) in enumerate(made.items()):
        model = tiny_models.llama(len(tokenizer), seed=seed, scale=2.0, **more)
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    return str(folder / "student"), str(folder / "teacher")


@pytest.mark.parametrize(
    "objectives",
    [
        {"alm": {"temperature": 5.0}},
        {"dskd": {}, "sft": {"weight": 0.5}},
        {"dskd": {"form": "cma"}},
        {"hidden": {}},
        {"hidden": {"layers": "even"}, "alm": {}},
    ],
    ids=str,
)
def test_the_plain_loop_learns(models, objectives):
    _, losses = example("plain_loop").train(*models, ROWS, objectives, steps=8)
    assert losses[-1] < 0.98 * losses[0]


def test_the_plain_loop_is_short():
    assert len((EXAMPLES / "plain_loop.py").read_text().splitlines()) <= 40


def test_the_plain_loop_runs_as_a_program(models, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plain_loop.py", *models])
    code = compile((EXAMPLES / "plain_loop.py").read_text(), "plain_loop.py", "exec")
    exec(code, {"__name__": "__main__"})  # noqa: S102
    losses = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_the_trainer_of_trl_learns(models, tmp_path):
    pytest.importorskip("trl", reason="trl is not installed; it needs Python 3.11")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    trainer = example("trl_sft_with_alm").main(
        *models, str(rows), str(tmp_path / "out"),
        max_steps=8, learning_rate=1e-3, per_device_train_batch_size=3,
        gradient_accumulation_steps=2, logging_steps=1, save_strategy="no", report_to="none",
        use_cpu=True, bf16=False, disable_tqdm=True, lr_scheduler_type="constant",
    )  # fmt: skip
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 8
    assert losses[-1] < 0.95 * losses[0]
    assert (tmp_path / "out" / "model.safetensors").is_file()
