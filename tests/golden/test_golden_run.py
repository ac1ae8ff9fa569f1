"""Sixty steps on tiny models, recorded: whatever changes a number changes it here first.

Where a change is meant, write the file anew:
`CROSSTILL_WRITE_GOLDEN=1 pytest tests/golden/test_golden_run.py`, and say why in the commit.
"""

import json
import os
from pathlib import Path

import pytest

import tiny_training as tiny

RECORD = Path(__file__).with_name("run.json")
# Sixty steps amplify the last bit of a sum; the order of sums differs between machines.
TOLERANCE = 2e-2
FIRST = 5e-4


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    run = tiny.trainer(
        tmp_path_factory.mktemp("golden"),
        max_steps=60,
        learning_rate=3e-3,
        gradient_accumulation_steps=2,
        objectives={"alm": {"temperature": 5.0}, "sft": {"weight": 0.1}},
    )
    run.train()
    return {
        name: [line[name] for line in run.state.log_history if name in line]
        for name in ("loss", "loss/alm", "loss/sft", "aligned_byte_fraction")
    }


def test_the_numbers_are_those_recorded(losses):
    if os.environ.get("CROSSTILL_WRITE_GOLDEN"):
        rounded = {name: [float(f"{x:.7g}") for x in line] for name, line in losses.items()}
        RECORD.write_text(json.dumps(rounded, indent=0).replace(",\n", ", ") + "\n")
    recorded = json.loads(RECORD.read_text())
    assert losses.keys() == recorded.keys()
    for name, line in recorded.items():
        assert len(losses[name]) == 60
        assert losses[name][:5] == pytest.approx(line[:5], rel=FIRST), name
        assert losses[name] == pytest.approx(line, rel=TOLERANCE), name


def test_the_student_learns(losses):
    for name in ("loss", "loss/alm", "loss/sft"):
        first, last = (sum(part) / 6 for part in (losses[name][:6], losses[name][-6:]))
        assert last < 0.7 * first, name
