"""What a person sees when a transfer goes wrong: one clear line, the right code, nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tiny_run import check_fault, crosstill, crosstill_apart, make_run, make_transfer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two models, made once."""
    return make_run(tmp_path_factory.mktemp("models")).parent


@pytest.fixture
def run(models, tmp_path):
    """A folder with a good recipe of its own over the shared models."""
    return make_transfer(tmp_path, models, prompts={}, eval_texts=[])


def test_a_model_without_a_target(models):
    outcome = crosstill_apart("transfer", models / "student")
    check_fault(outcome, 2, "--to", "bytes", ".yaml")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--mode", "fulll"], ["mode is 'fulll'", "full"]),
        (["--initial", "fvtt"], ["fvtt", "fvt"]),
        (["--special-tokens", "lose"], ["keep | change"]),
        (["--learning-rat", "1"], ["did you mean", "learning_rate"]),
        (["--training.trust_remote_code"], ["--trust-remote-code"]),
        (["--to", "models/nowhere"], ["nowhere"]),
        (["--model", "models/nowhere"], ["nowhere"]),
        (["--to", "bytes", "--special-tokens", "change"], ["special_tokens", "bytes"]),
        (["--objectives", "{alm: {temprature: 1}}"], ["temprature", "temperature"]),
    ],
)
def test_what_can_be_mended(run, flags, parts):
    check_fault(crosstill("transfer", run, *flags), 2, *parts)
    assert not (run.parent / "out" / "model").exists()


def test_a_missing_recipe(tmp_path):
    check_fault(crosstill("transfer", tmp_path / "none.yaml"), 2, "none.yaml")


def test_missing_data_names_the_nearest(run):
    data = run.parent / "trian.jsonl"
    check_fault(crosstill("transfer", run, "--train", data), 2, "train.jsonl?")


def test_wrong_data_is_named_by_its_line(run):
    (run.parent / "train.jsonl").write_text('{"text": "fine"}\n{"text": "no end\n')
    check_fault(crosstill("transfer", run), 3, "train.jsonl, line 2")


def test_a_folder_with_files_is_left_alone(run):
    out = run.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    check_fault(crosstill("transfer", run), 2, "not empty", "--resume", "--overwrite")
    check_fault(crosstill("transfer", run, "--overwrite"), 2, "none of them from a run")
    assert (out / "thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
@pytest.mark.parametrize(
    ("number", "code", "stage"),
    [
        (signal.SIGINT, 130, "2-full"),
        pytest.param(signal.SIGINT, 130, "1-embeddings", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "1-embeddings", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, "2-full", marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_a_stage_and_resume(run, number, code, stage):
    """The run ends in the stage; then --resume finishes it, and no step is taken twice."""
    long, short = 60, 3
    values = yaml.safe_load(run.read_text())
    steps = {"1-embeddings": short, "2-full": short, stage: long}
    values["stages"] = [
        {"train": name[2:], "max_steps": count, "save_steps": 2} for name, count in steps.items()
    ]
    run.write_text(yaml.safe_dump(values))
    child = subprocess.Popen(
        [sys.executable, "-m", "crosstill", "transfer", str(run), "--logging-steps", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    out = run.parent / "out"
    metrics = out / "stages" / stage / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count('"loss"') > 2):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == code, err
    if number == signal.SIGINT:
        assert "Traceback" not in err
        assert "--resume" in err
    assert not (out / "summary.json").exists()
    check_fault(crosstill("transfer", run), 2, "not empty")
    resumed = crosstill("transfer", run, "--resume", "--logging-steps", "1", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["steps"] == long + short
    lines = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, long + short + 1))
