"""The verbs, end to end, on a pair of tiny models."""

import json
from pathlib import Path

import pytest

from crosstill import __version__
from crosstill.objectives import create
from crosstill.training.asked import parse_objectives
from crosstill.training.recipe import load_recipe
from crosstill.transfer import load_transfer
from tiny_run import crosstill, make_run, make_transfer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def finished(recipe):
    """A finished run: its folder, and how the command ended."""
    out = recipe.parent / "finished"
    return out, crosstill(
        "distill", recipe, "--output-dir", out, "--learning-rate", "1e-3", "--training.seed=5",
        "--logging-steps", 1, "--divergence-steps", 1, "--json",
    )  # fmt: skip


def test_distill_writes_everything_it_promises(finished):
    folder, outcome = finished
    assert outcome.code == 0, outcome.err
    written = {path.name for path in folder.iterdir()}
    assert {"model", "metrics.jsonl", "summary.json", "report.html"} <= written
    summary = json.loads(outcome.out)
    assert summary == json.loads((folder / "summary.json").read_text())
    promised = {
        "teacher_divergence_before", "teacher_divergence_after", "gap_closed",
        "teacher_bits_per_byte", "student_bits_per_byte_before", "student_bits_per_byte_after",
        "steps", "student_tokens", "seconds", "aligned_byte_fraction", "rows_skipped",
        "objective", "seed", "versions",
    }  # fmt: skip
    assert promised <= set(summary)
    assert summary["steps"] == 2
    assert summary["seed"] == 5
    assert summary["recipe"]["training"]["learning_rate"] == 1e-3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "eval_divergence" in line] == [0, 1]
    page = (folder / "report.html").read_text()
    assert f"{summary['student_bits_per_byte_after']:.3f}" in page


def test_evaluate_measures_the_model_that_was_written(finished, recipe):
    folder, _ = finished
    texts = recipe.parent / "held_out.txt"
    texts.write_text("A text that nobody has trained on.")
    outcome = crosstill("evaluate", folder / "model", "--texts", texts, "--json")
    assert outcome.code == 0, outcome.err
    measured = json.loads(outcome.out)
    summary = json.loads((folder / "summary.json").read_text())
    assert measured["bits_per_byte"] == pytest.approx(summary["student_bits_per_byte_after"])
    assert measured["divergence"] is None


def test_evaluate_a_model_against_itself_finds_no_divergence(recipe, tmp_path):
    prompts = tmp_path / "prose.jsonl"
    prompts.write_text('{"prompt": "Once upon a time"}\n{"prompt": "The fox"}\n')
    outcome = crosstill(
        "evaluate", recipe.parent / "teacher", "--teacher", recipe.parent / "teacher",
        "--prompts", prompts, "--samples", tmp_path / "samples.jsonl", "--max-new-tokens", 8,
        "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    divergence = json.loads(outcome.out)["divergence"]
    assert divergence["overall"]["divergence"] == pytest.approx(0.0, abs=1e-6)
    assert list(divergence["kinds"]) == ["prose"]


def test_doctor_finds_a_good_recipe_good(recipe):
    outcome = crosstill("doctor", recipe, "--json")
    assert outcome.code == 0, outcome.out + outcome.err
    report = json.loads(outcome.out)
    looked_at = {finding["where"] for finding in report["findings"]}
    assert {
        "student tokenizer",
        "teacher model",
        "data",
        "alignment",
        "memory",
        "time",
    } <= looked_at
    assert {finding["level"] for finding in report["findings"]} <= {"ok", "note"}
    assert not (recipe.parent / "out").exists()


def test_doctor_knows_the_recipe_of_a_transfer(recipe, tmp_path):
    path = make_transfer(tmp_path, recipe.parent)
    outcome = crosstill("doctor", path, "--json", "--max-steps", 3)
    assert outcome.code == 0, outcome.out + outcome.err
    findings = {one["where"]: one["what"] for one in json.loads(outcome.out)["findings"]}
    assert {"new tokenizer", "first embeddings", "alignment", "memory", "time"} <= findings.keys()
    assert findings["time"].startswith("3 steps")


def test_inspect_shows_both_sides(recipe):
    pair = (recipe.parent / "student", recipe.parent / "teacher" / "tokenizer.json")
    outcome = crosstill("inspect", *pair, "--string", "The quick brown fox, twice.", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    alignment = found["alignment"]
    assert alignment["coverage"]["bytes"] == 1.0
    (s0, _), (t0, _) = alignment["chunks"][0]
    assert (s0, t0) == (0, 0)
    assert alignment["chunks"][-1][0][1] == len(alignment["student_ids"])
    assert found["coverage"]["bytes"] == len("The quick brown fox, twice.")
    assert 0 < found["vocabulary"]["shared"] <= found["vocabulary"]["student"]


def test_inspect_writes_a_page_and_never_over_another(recipe, tmp_path):
    pair = (recipe.parent / "student", recipe.parent / "teacher")
    page = tmp_path / "page.html"
    outcome = crosstill("inspect", *pair, "--string", "<b>bold</b>", "--html", page)
    assert outcome.code == 0, outcome.err
    assert "By script" in outcome.out
    text = page.read_text()
    assert "<b>bold" not in text
    assert "script src" not in text
    again = crosstill("inspect", *pair, "--string", "other", "--html", page)
    assert again.code == 2
    assert "--overwrite" in again.err
    assert page.read_text() == text


def test_methods_lists_papers_and_options():
    outcome = crosstill("methods", "--json")
    assert outcome.code == 0, outcome.err
    methods = {method["name"]: method for method in json.loads(outcome.out)}
    assert "2503.20083" in methods["alm"]["paper"]
    assert "temperature" in {option["name"] for option in methods["alm"]["options"]}
    assert methods["forward_kl"]["one_vocabulary"]
    assert not methods["alm"]["one_vocabulary"]


def test_methods_says_of_each_what_it_is_and_of_one_what_its_options_do():
    every = crosstill("methods")
    assert every.code == 0, every.err
    blocks = "\n".join(line.rstrip() for line in every.out.splitlines()).split("\n\n")
    for method in json.loads(crosstill("methods", "--json").out):
        (block,) = [one for one in blocks if one.split(" ")[0] == method["name"]]
        assert all(word in block for word in ("choose", "needs", "cost", "options"))
    one = crosstill("methods", "jsd")
    assert "symmetric" in one.out
    assert "alm" not in one.out
    wrong = crosstill("methods", "jds")
    assert wrong.code == 2
    assert "did you mean 'jsd'" in wrong.err


@pytest.fixture(scope="module")
def transferred(recipe):
    """A finished transfer by flags alone, and how the command ended."""
    out = recipe.parent / "transferred"
    return out, crosstill(
        "transfer", recipe.parent / "student", "--to", recipe.parent / "teacher" / "tokenizer.json",
        "--train", recipe.parent / "train.jsonl", "--train", recipe.parent / "train.jsonl",
        "--output-dir", out, "--max-steps", 2, "--max-length", 64, "--use-cpu",
        "--report-to", "none", "--divergence-tokens", 8, "--divergence-samples", 2,
        "--prompts", "{prose: [Once upon a time, The fox]}", "--json",
    )  # fmt: skip


def test_transfer_by_flags(transferred):
    out, outcome = transferred
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["steps"] == 2
    assert len(summary["recipe"]["train"]) == 2
    assert {"model", "stages", "summary.json", "report.html"} <= {p.name for p in out.iterdir()}


def test_transfer_by_a_recipe_with_flags_over_it(transferred, recipe):
    path = make_transfer(recipe.parent / "by_recipe", recipe.parent)
    out = recipe.parent / "by_recipe" / "second"
    outcome = crosstill("transfer", path, "--to", "bytes", "--train", "null", "--output-dir", out)
    assert outcome.code == 0, outcome.err
    assert "256 copied" in outcome.out
    assert json.loads((out / "summary.json").read_text())["steps"] == 0
    assert "student on bytes" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "verb", ["distill", "transfer", "inspect", "doctor", "evaluate", "methods"]
)
def test_every_verb_has_help_and_json(verb):
    outcome = crosstill(verb, "--help")
    assert outcome.code == 0
    assert "--json" in outcome.out
    assert "--debug" in outcome.out


def test_version_and_usage():
    assert crosstill("--version").out.strip() == f"crosstill {__version__}"
    wrong = crosstill("distil")
    assert wrong.code == 2
    assert "distill" in wrong.err
    assert crosstill("distill").code == 2


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def of_a_transfer(recipe):
    return recipe.name.startswith("transfer_")


@pytest.mark.parametrize(
    "recipe", [r for r in RECIPES if not of_a_transfer(r)], ids=lambda p: p.name
)
def test_every_recipe_in_the_repository_can_be_read(recipe):
    loaded = load_recipe(recipe, {"use_cpu": True})
    assert loaded.training.max_steps > 0
    _check_objectives(loaded.training)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if of_a_transfer(r)], ids=lambda p: p.name)
def test_every_recipe_of_a_transfer_can_be_read(recipe):
    loaded = load_transfer(recipe, {"use_cpu": True})
    assert loaded.stages
    for stage in loaded.stages:
        assert stage.settings.max_steps > 0
        _check_objectives(stage.settings)


def _check_objectives(settings):
    for name, options in parse_objectives(settings.objectives).items():
        create(name, **{key: value for key, value in options.items() if key != "weight"})
