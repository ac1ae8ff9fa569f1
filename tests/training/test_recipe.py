"""Recipes: what is read, what is refused, and that all problems are named at once."""

import pytest

from crosstill.errors import ConfigError, TrustError
from crosstill.training.recipe import load_recipe, parse_recipe
from crosstill.training.recipe_file import MAX_BYTES

GOOD = """
student: small
teacher: large
train: rows.jsonl
output_dir: out
prompts: {chat: chats.jsonl}
training:
  use_cpu: true
  learning_rate: 1e-4
  objectives: {alm: {temperature: 10}}
"""


@pytest.fixture
def recipe(tmp_path):
    def load(text=GOOD, **overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, {key.replace("__", "."): v for key, v in overrides.items()})

    return load


def test_a_recipe(recipe):
    loaded = recipe()
    assert (loaded.student, loaded.teacher, loaded.output_dir) == ("small", "large", "out")
    assert loaded.training.learning_rate == 1e-4
    assert loaded.training.output_dir == "out"
    assert loaded.plain()["training"]["objectives"]["alm"]["temperature"] == 10


def test_overrides_reach_every_level(recipe):
    loaded = recipe(
        student="other", max_steps=3, training__seed=5, training__objectives__alm__weight=2
    )
    assert loaded.student == "other"
    assert (loaded.training.max_steps, loaded.training.seed) == (3, 5)
    assert loaded.training.objectives["alm"] == {"weight": 2.0, "temperature": 10}
    assert recipe(objectives="sft").training.objectives == {"sft": {"weight": 1.0}}


def test_the_word_no_of_a_strategy_is_not_false(recipe):
    text = GOOD.replace("use_cpu: true", "use_cpu: true\n  save_strategy: no")
    assert recipe(text).training.save_strategy == "no"


def test_all_problems_are_named_at_once(recipe):
    with pytest.raises(ConfigError) as caught:
        recipe("studnet: a\ntrain: 3\noutput_dir: o\ntraining: {lern: 1, max_length: x}")
    for part in (
        "did you mean student?",
        "student is missing",
        "teacher is missing",
        "train is 3",
        "training.lern",
        "max_length is 'x'",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "learning_rate is a setting: put it under training"),
        ("learning_rat: 1", "did you mean learning_rate?"),
        ("student: a\nstudent: b", "'student' is given twice"),
        ("training: {seed: 1, seed: 2}", "'seed' is given twice"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['touch sentinel']", "python"),
        ("[1, 2]", "holds list"),
        ("a: [", "not a plain YAML"),
        ("a: " + "[" * 500 + "]" * 500, "nested deeper"),
        ("1: a", "not text"),
        (GOOD + "\non_bad_row: ignore", "raise | skip"),
        (GOOD + "\nreword: -1", "reword is -1: a share of the words, from 0 to 1"),
        (GOOD.replace("training:", "training:\n  output_dir: x"), "at the top"),
    ],
)
def test_what_is_refused(recipe, text, message):
    with pytest.raises(ConfigError) as caught:
        recipe(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "trust_remote_code: true",
        "training: {trust_remote_code: true}",
        "peft: {x: [{trust_remote_code: false}]}",
    ],
)
def test_a_file_cannot_give_trust(recipe, text):
    with pytest.raises(TrustError, match="trust_remote_code"):
        recipe(text)


def test_an_override_cannot_give_trust(recipe):
    with pytest.raises(TrustError):
        recipe(training__trust_remote_code=True)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_recipe(tmp_path / "none.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="at most"):
        load_recipe(big)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipe(binary)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": {"alm": {"teacher": "same"}}}, "alm have `teacher: same`"),
        ({"same_tokenizer_teacher": "models/other"}, "no objective reads it"),
    ],
)
def test_a_second_teacher_and_who_reads_it_belong_together(changes, message):
    values = {"student": "a", "teacher": "b", "train": "c", "output_dir": "d"}
    training = {"use_cpu": True}
    with pytest.raises(ConfigError, match=message):
        parse_recipe({**values, "training": training}, changes)
