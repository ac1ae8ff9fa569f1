"""A run small enough for a test: two models of different tokenizers, rows, a recipe."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import tiny_models
import tiny_tokenizers
from crosstill.cli.main import main

ROWS = [
    {"prompt": "Say hello.", "completion": " Hello, it is a fine day \u2013 and a long one."},
    {"prompt": "Count.", "completion": " one two three four five six seven"},
    {"text": "The quick brown fox jumps over the lazy dog, twice."},
    {"text": "def add(a, b):\n    return a + b\n"},
] * 4


def save_model(folder: Path, tokenizer: Any, *, seed: int) -> Path:
    """Save a tiny Llama with a tokenizer as a model folder."""
    tiny_models.llama(len(tokenizer), seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(file: Path, rows: list[dict]) -> Path:
    """Write JSON Lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def make_run(folder: Path, models: Path | None = None) -> Path:
    """Write data and a recipe into a folder, and models if none are given; return the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    if models is None:
        models = folder
        save_model(folder / "student", tiny_tokenizers.byte_level_bpe(vocab_size=320), seed=1)
        save_model(folder / "teacher", tiny_tokenizers.byte_level_bpe(vocab_size=480), seed=2)
    write_rows(folder / "train.jsonl", ROWS)
    recipe = {
        "student": str(models / "student"),
        "teacher": str(models / "teacher"),
        "train": str(folder / "train.jsonl"),
        "output_dir": str(folder / "out"),
        "eval_texts": ["A text that nobody has trained on."],
        "prompts": {"prose": ["Once upon a time", "The fox"]},
        "training": {
            "use_cpu": True,
            "max_steps": 2,
            "max_length": 64,
            "per_device_train_batch_size": 2,
            "divergence_samples": 4,
            "divergence_tokens": 8,
            "report_to": "none",
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def make_transfer(folder: Path, models: Path | None = None, **changes: Any) -> Path:
    """Write data and a transfer's recipe into a folder; the target is the teacher's tokenizer."""
    values = yaml.safe_load(make_run(folder, models).read_text())
    values |= {"model": values.pop("student"), "to": values.pop("teacher")}
    values |= {"initial": "fvt", **changes}
    path = folder / "transfer.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def crosstill(*args: object) -> Outcome:
    """Run the command line in this process: the same entry point, without a second start."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["crosstill", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())


def check_fault(outcome: Outcome, code: int, *parts: str) -> None:
    """One line on stderr with all parts in it, the exit code, and no traceback."""
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("crosstill: ")]
    for part in parts:
        assert part in line, line
    assert outcome.out == ""


def crosstill_apart(*args: object) -> Outcome:
    """Run the command line in a process of its own, without the network."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "crosstill", *map(str, args)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
