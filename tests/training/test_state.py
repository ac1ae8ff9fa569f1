"""States survive safetensors and JSON bit for bit, and nothing else is accepted."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill.errors import CheckpointError
from crosstill.training.randomness import random_state, set_random_state
from crosstill.training.state import load_state, save_state

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
KEYS = st.text("abc_", min_size=1, max_size=3) | st.integers(0, 5)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=TREES)
def test_any_tree_of_plain_values_survives(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    save_state(tree, folder, "x")
    assert load_state(folder, "x") == tree


def test_optimizer_goes_on_where_it_was(tmp_path):
    torch.manual_seed(0)
    first = torch.nn.Linear(3, 3)
    second = torch.nn.Linear(3, 3)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (first, second)]

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step(first, optimizers[0])
    second.load_state_dict(first.state_dict())
    save_state(optimizers[0].state_dict(), tmp_path, "optimizer")
    optimizers[1].load_state_dict(load_state(tmp_path, "optimizer"))
    for model, optimizer in zip((first, second), optimizers, strict=True):
        step(model, optimizer)
    assert torch.equal(first.weight, second.weight)
    assert optimizers[1].param_groups[0]["betas"] == (0.9, 0.999)


def test_random_generators_go_on_where_they_were(tmp_path):
    def draws():
        return random.random(), np.random.random(), torch.rand(2).tolist()  # noqa: NPY002

    draws()
    save_state(random_state(), tmp_path, "random")
    expected = draws()
    draws()
    set_random_state(load_state(tmp_path, "random"))
    assert draws() == expected


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.fn is a function"):
        save_state({"fn": lambda: None}, tmp_path, "x")


@pytest.mark.parametrize("damage", ["missing", "not json", "cut"])
def test_damage_is_an_error_that_names_the_file(tmp_path, damage):
    save_state({"a": torch.ones(4)}, tmp_path, "x")
    if damage == "missing":
        (tmp_path / "x.json").unlink()
    elif damage == "not json":
        (tmp_path / "x.json").write_text("{")
    else:
        file = tmp_path / "x.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="x"):
        load_state(tmp_path, "x")
