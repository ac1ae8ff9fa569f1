import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.cli.options import print_json, recipe_overrides
from crosstill.errors import ConfigError


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], {}),
        (["--seed", "3"], {"seed": 3}),
        (["--learning-rate", "1e-4"], {"learning_rate": 1e-4}),
        (["--learning-rate=-.5"], {"learning_rate": -0.5}),
        (["--max-steps", "-1"], {"max_steps": -1}),
        (["--training.bf16"], {"training.bf16": True}),
        (["--training.bf16", "--seed=1"], {"training.bf16": True, "seed": 1}),
        (["--training.bf16", "false"], {"training.bf16": False}),
        (["--objectives", "{alm: {weight: 0.5}}"], {"objectives": {"alm": {"weight": 0.5}}}),
        (["--prompts.chat=[a, b]"], {"prompts.chat": ["a", "b"]}),
        (["--student", "models/a=b"], {"student": "models/a=b"}),
        (["--train-split="], {"train_split": None}),
    ],
)
def test_flags_become_recipe_keys(args, expected):
    assert recipe_overrides(args) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["seed", "3"], "expected a recipe key"),
        (["-s", "3"], "expected a recipe key"),
        (["--seed", "1", "--seed", "2"], "given twice"),
        (["--learning-rate=1", "--learning_rate=2"], "given twice"),
        (["--student", "{a: "], "not a YAML value"),
        (["--student", "!!python/object:os.system {}"], "not a YAML value"),
        (["--seed", "1", "2"], "expected a recipe key"),
    ],
)
def test_what_is_no_key_and_value_is_refused(args, message):
    with pytest.raises(ConfigError, match=message):
        recipe_overrides(args)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_float_survives(value):
    (found,) = recipe_overrides([f"--x={value!r}"]).values()
    assert float(found) == value


@given(st.integers())
def test_every_integer_stays_an_integer(value):
    assert recipe_overrides([f"--x={value}"]) == {"x": value}


def test_json_is_one_readable_object(capsys):
    print_json({"a": "é", "b": [1.5, None]})
    assert json.loads(capsys.readouterr().out) == {"a": "é", "b": [1.5, None]}
