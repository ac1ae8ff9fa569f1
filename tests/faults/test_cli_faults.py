"""What a person sees when something is wrong: one clear line, the right code, nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

import tiny_tokenizers
from tiny_run import ROWS, check_fault, crosstill, crosstill_apart, make_run, write_rows


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models, made once."""
    return make_run(tmp_path_factory.mktemp("pair")).parent


@pytest.fixture
def run(pair, tmp_path):
    """A folder with a good recipe of its own over the shared models."""
    return make_run(tmp_path, models=pair)


def _change(recipe, **changes):
    values = yaml.safe_load(recipe.read_text()) | changes
    recipe.write_text(yaml.safe_dump(values))
    return recipe


# --- the recipe ----------------------------------------------------------------------------------


def test_a_missing_recipe(tmp_path):
    outcome = crosstill("distill", tmp_path / "none.yaml")
    assert outcome.code == 2
    assert "none.yaml: No such file" in outcome.err


def test_unknown_keys_are_all_named_with_their_nearest(run):
    _change(run, studnet="x", output_dri="y")
    outcome = crosstill_apart("distill", run, "--learning-rat", "1")
    check_fault(
        outcome, 2, "studnet", "did you mean student?", "output_dri", "learning_rat", "did you"
    )


def test_the_traceback_is_there_for_who_asks(run):
    _change(run, studnet="x")
    outcome = crosstill("distill", run, "--debug")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("crosstill: ")


def test_trust_is_never_taken_from_a_file_or_a_key(run):
    check_fault(crosstill("distill", run, "--training.trust_remote_code"), 2, "--trust-remote-code")
    _change(run, trust_remote_code=True)
    check_fault(crosstill("distill", run), 2, "trust_remote_code", "recipe")


@pytest.mark.parametrize(
    "text",
    ["- a\n- b\n", "student: !!python/object/apply:os.system [true]\n", "a: &x 1\nb: *x\n", ": ["],
)
def test_yaml_that_is_no_recipe(run, text):
    run.write_text(text)
    outcome = crosstill("distill", run)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.err.startswith("crosstill: ")


# --- models and tokenizers -----------------------------------------------------------------------


def test_a_missing_model_names_the_nearest(run, pair):
    check_fault(crosstill("distill", run, "--student", pair / "studnet"), 2, "studnet", "student?")
    assert not (run.parent / "out" / "model").exists()


def test_a_slow_tokenizer(run, pair, tmp_path):
    slow = shutil.copytree(pair / "student", tmp_path / "slow")
    (slow / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "CanineTokenizer"}
    (slow / "tokenizer_config.json").write_text(json.dumps(settings))
    check_fault(crosstill("distill", run, "--student", slow), 2, str(slow), "tokenizer")


def test_a_model_without_safetensors(run, pair, tmp_path):
    pickled = shutil.copytree(pair / "teacher", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    check_fault(
        crosstill("distill", run, "--teacher", pickled), 2, "pytorch_model.bin", "safetensors"
    )


def test_a_model_that_wants_its_own_code(run, pair, tmp_path):
    evil = shutil.copytree(pair / "teacher", tmp_path / "evil")
    config = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    )
    (evil / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    check_fault(crosstill("distill", run, "--teacher", evil), 2, "--trust-remote-code")
    assert not (tmp_path / "ran").exists()


# --- data ----------------------------------------------------------------------------------------


def test_missing_data_names_the_nearest(run):
    check_fault(crosstill("distill", run, "--train", run.parent / "trian.jsonl"), 2, "train.jsonl?")


def test_broken_json_is_named_by_its_line(run):
    lines = [json.dumps(row) for row in ROWS[:3]]
    lines[1] = '{"text": "no end'
    (run.parent / "train.jsonl").write_text("\n".join(lines) + "\n")
    check_fault(crosstill("distill", run), 3, "train.jsonl, line 2", "no end")


def test_an_empty_data_set(run):
    (run.parent / "train.jsonl").write_text("")
    check_fault(crosstill("distill", run), 3, "train.jsonl")


def test_a_lone_surrogate(run):
    (run.parent / "train.jsonl").write_text('{"text": "fine"}\n{"text": "\\ud800"}\n')
    check_fault(crosstill("distill", run), 3, "line 2", "surrogate")


def test_bad_rows_are_skipped_where_that_is_asked_for_and_counted(run):
    with (run.parent / "train.jsonl").open("a") as file:
        file.write('{"text": "\\ud800"}\n{"nothing": 1}\n')
    outcome = crosstill("distill", run, "--on-bad-row", "skip", "--max-bad-rows", 0.5, "--json")
    assert outcome.code == 0, outcome.err
    skipped = json.loads(outcome.out)["rows_skipped"]
    assert skipped == {"bad_unicode": 1, "malformed": 1}
    assert "rows skipped: bad unicode" in (run.parent / "out" / "report.html").read_text()


# --- what is already there -----------------------------------------------------------------------


def test_a_folder_with_files_is_left_alone(run):
    out = run.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    check_fault(crosstill("distill", run), 2, "not empty", "--resume", "--overwrite")
    check_fault(crosstill("distill", run, "--overwrite"), 2, "none of them from a run")
    assert (out / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {"thesis.txt"}


def test_overwrite_renames_and_keeps(run):
    out = run.parent / "out"
    first = crosstill("distill", run, "--json")
    assert first.code == 0, first.err
    summary = (out / "summary.json").read_bytes()
    assert crosstill("distill", run).code == 2
    assert (out / "summary.json").read_bytes() == summary
    again = crosstill("distill", run, "--overwrite", "--seed", "9", "--json")
    assert again.code == 0, again.err
    (aside,) = run.parent.glob("out.replaced-*")
    assert (aside / "summary.json").read_bytes() == summary
    assert (aside / "model" / "model.safetensors").is_file()
    assert json.loads((out / "summary.json").read_text())["seed"] == 9


def test_an_output_that_is_a_file(run):
    (run.parent / "out").write_text("a file")
    check_fault(crosstill("distill", run), 2, "is a file")
    assert (run.parent / "out").read_text() == "a file"


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as on POSIX")
def test_an_interrupt_ends_with_130_and_a_checkpoint_to_go_on_from(run):
    """One SIGINT while it trains; then --resume finishes the run."""
    _change(run, training=yaml.safe_load(run.read_text())["training"] | {"max_steps": 150})
    child = subprocess.Popen(
        [sys.executable, "-m", "crosstill", "distill", str(run), "--logging-steps", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    metrics = run.parent / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"loss"' in metrics.read_text()):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    assert "--resume" in err
    (checkpoint,) = (run.parent / "out").glob("checkpoint-*")
    step = int(checkpoint.name.split("-")[1])
    assert 0 < step < 150
    check_fault(crosstill("distill", run), 2, "not empty")
    resumed = crosstill("distill", run, "--resume", "--logging-steps", "1", "--json")
    assert resumed.code == 0, resumed.err
    assert json.loads(resumed.out)["steps"] == 150
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 151))


# --- doctor --------------------------------------------------------------------------------------


def test_doctor_names_all_problems_at_once(run, pair, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "out").write_text("a file")
    pickled = shutil.copytree(pair / "teacher", tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    _change(run, student=str(tmp_path / "nowhere"), teacher=str(pickled))
    outcome = crosstill("doctor", run, "--json")
    assert outcome.code == 2
    errors = {
        finding["where"]: finding["what"]
        for finding in json.loads(outcome.out)["findings"]
        if finding["level"] == "error"
    }
    assert set(errors) == {
        "student model",
        "student tokenizer",
        "teacher weights",
        "data",
        "output folder",
    }
    assert "line 2" in errors["data"]
    assert "Traceback" not in outcome.err


def test_an_unknown_option_of_an_objective(run):
    outcome = crosstill("doctor", run, "--objectives", "{alm: {temprature: 1}}")
    check_fault(outcome, 2, "temprature", "temperature")


def test_doctor_leaves_with_3_where_only_the_data_is_wrong(run):
    write_rows(run.parent / "train.jsonl", [{"messages": [{"role": "user", "content": "Hi"}]}])
    outcome = crosstill("doctor", run)
    assert outcome.code in (2, 3)
    (run.parent / "train.jsonl").write_text("{\n")
    assert crosstill("doctor", run).code == 3


def test_doctor_sees_a_tokenizer_of_another_model(run, pair, tmp_path):
    mixed = shutil.copytree(pair / "student", tmp_path / "mixed")
    tiny_tokenizers.byte_level_bpe(vocab_size=433).save_pretrained(mixed)
    outcome = crosstill("doctor", run, "--student", mixed, "--json")
    assert outcome.code == 2
    findings = {f["where"]: f for f in json.loads(outcome.out)["findings"]}
    assert findings["student vocabulary"]["level"] == "error"
    assert "do not belong together" in findings["student vocabulary"]["what"]


# --- inspect and evaluate ------------------------------------------------------------------------


def test_inspect_faults(pair, tmp_path):
    sides = (pair / "student", pair / "teacher")
    check_fault(crosstill("inspect", *sides, "--string", "\ud800"), 3, "surrogate")
    check_fault(crosstill("inspect", *sides, "--string", ""), 3, "nothing")
    check_fault(crosstill("inspect", *sides, "--text", tmp_path / "no.md"), 2, "no.md")
    (tmp_path / "latin.md").write_bytes(b"\xe9t\xe9")
    check_fault(crosstill("inspect", *sides, "--text", tmp_path / "latin.md"), 3, "UTF-8")
    (tmp_path / "not.json").write_text("{}")
    check_fault(crosstill("inspect", tmp_path / "not.json", sides[1]), 2, "not.json")


def test_evaluate_faults(pair, tmp_path):
    check_fault(crosstill("evaluate", pair / "student"), 2, "--texts")
    check_fault(crosstill("evaluate", pair / "student", "--prompts", "p.jsonl"), 2, "--teacher")
    check_fault(
        crosstill("evaluate", pair / "student", "--texts", tmp_path / "no.txt"), 2, "no.txt"
    )
    (tmp_path / "p.jsonl").write_text('{"prompt": 1}\n')
    check_fault(
        crosstill(
            "evaluate", pair / "student", "--teacher", pair / "teacher",
            "--prompts", tmp_path / "p.jsonl",
        ),
        3,
        "line 1",
    )  # fmt: skip
