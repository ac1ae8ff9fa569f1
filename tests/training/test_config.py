"""Settings: defaults, what is refused, and that every one of ours is read somewhere."""

import ast
import dataclasses
from pathlib import Path

import pytest

import crosstill.training
from crosstill.errors import ConfigError
from crosstill.objectives import create, methods
from crosstill.training.asked import parse_objectives
from crosstill.training.config import DistillConfig, own_settings
from crosstill.training.recipe import Recipe


def config(tmp_path, **settings) -> DistillConfig:
    return DistillConfig(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_every_setting_of_ours_is_read_somewhere():
    read = set()
    package = Path(crosstill.training.__file__).parents[1]
    for file in package.rglob("*.py"):
        if file.name != "config.py" or file.parent.name != "training":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            read |= {
                n.attr
                for n in ast.walk(tree)
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)
            }
    assert set(own_settings()) - read == set()


def attributes_read(*folders: str) -> set[str]:
    """Attributes that the code of these packages reads, outside the checks of `__post_init__`."""
    package = Path(crosstill.training.__file__).parents[1]
    read = set()
    for file in (file for folder in folders for file in (package / folder).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        checks = [n for n in ast.walk(tree) if getattr(n, "name", "") == "__post_init__"]
        checked = {id(inner) for check in checks for inner in ast.walk(check)}
        read |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Load)
            and id(node) not in checked
        }
    return read


def test_every_key_of_a_recipe_is_read_somewhere():
    keys = {field.name for field in dataclasses.fields(Recipe)}
    assert keys - attributes_read("training", "doctor") == set()


@pytest.mark.parametrize("name", [method.name for method in methods()])
def test_every_option_of_an_objective_is_read_somewhere(name):
    options = {field.name for field in dataclasses.fields(create(name).options)}
    assert options - attributes_read("objectives", "functional") == set()


def test_every_setting_of_ours_says_what_it_does():
    for field in dataclasses.fields(DistillConfig):
        if field.name in own_settings():
            assert len(field.metadata["help"]) > 10, field.name
            assert f"{field.name}:" in (DistillConfig.__doc__ or ""), field.name


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("alm", {"alm": {"weight": 1.0}}),
        ("alm + sft", {"alm": {"weight": 1.0}, "sft": {"weight": 1.0}}),
        ({"alm": None, "sft": 0.5}, {"alm": {"weight": 1.0}, "sft": {"weight": 0.5}}),
        ('{"alm": {"temperature": 5}}', {"alm": {"weight": 1.0, "temperature": 5}}),
    ],
)
def test_objectives(value, expected):
    assert parse_objectives(value) == expected


@pytest.mark.parametrize(
    "value", ["", "alm+", {}, 3, {"alm": {"weight": 0}}, {"alm": {"weight": "x"}}, '{"alm"']
)
def test_wrong_objectives(value):
    with pytest.raises(ConfigError, match="objectives"):
        parse_objectives(value)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ("aml", "did you mean 'alm'"),
        ({"alm": {"temprature": 5.0}}, "did you mean 'temperature'"),
        ({"alm": {"temperature": -1.0}}, "temperature"),
    ],
)
def test_objectives_are_checked_before_anything_is_loaded(tmp_path, objectives, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, objectives=objectives)


@pytest.mark.parametrize(
    "settings",
    [
        {"auto_find_batch_size": True},
        {"fp16": True},
        {"logging_nan_inf_filter": True},
        {"remove_unused_columns": True},
        {"save_only_model": True},
        {"ignore_data_skip": True},
        {"label_smoothing_factor": 0.1},
        {"fsdp": "full_shard"},
        {"loss_on": "everything"},
        {"max_length": 1},
        {"gradnorm_alpha": -0.1},
        {"parts_learning_rate": 0.0},
        {"fused_head": "yes"},
        {"teacher_dtype": "int8"},
        {"divergence_steps": -1},
        {"train_sampling_strategy": "group_by_length"},
        {"logging_steps": 0},
    ],
    ids=lambda s: next(iter(s)),
)
def test_settings_that_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        config(tmp_path, **settings)


def test_all_problems_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, loss_on="x", max_length=0, fused_head=3)
    assert all(name in str(caught.value) for name in ("loss_on", "max_length", "fused_head"))


def test_unknown_keys_name_the_nearest_one():
    with pytest.raises(ConfigError) as caught:
        DistillConfig.from_dict({"output_dir": "x", "learning_rat": 1, "max_steps": "many"})
    assert "did you mean learning_rate?" in str(caught.value)
    assert "max_steps is 'many', expected a whole number" in str(caught.value)


def test_what_changes_no_step_is_no_part_of_the_run(tmp_path):
    one = config(tmp_path, logging_steps=1, dataloader_num_workers=2, save_steps=7)
    two = config(tmp_path / "other", logging_steps=5, hub_token="hf_secret")
    assert one.resolved() == two.resolved()
    assert "hf_secret" not in str(two.resolved())
    assert one.resolved() != config(tmp_path, learning_rate=1e-3).resolved()
    assert one.resolved() != config(tmp_path, objectives={"alm": {"debias": False}}).resolved()


def test_data_order_has_a_seed_of_its_own(tmp_path):
    assert config(tmp_path, seed=7).data_seed == 7
    assert config(tmp_path, seed=7, data_seed=8).data_seed == 8
