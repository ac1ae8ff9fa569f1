"""Cumulative sums in a given order."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill.functional.prefixes import ordered_sum as by_torch
from crosstill.kernels.ordered_sum import available, ordered_sum

pytestmark = pytest.mark.skipif(not available(), reason="numba is not there")


@given(st.integers(0, 1000), st.integers(0, 5), st.integers(1, 9), st.integers(1, 3))
def test_equal_to_numpy(seed, rows, width, threads):
    rng = np.random.default_rng(seed)
    values = rng.random((rows, width), np.float32)
    order = rng.permutation(width)[: rng.integers(0, width + 1)].astype(np.int32)
    expected = np.cumsum(values[:, order], 1, dtype=np.float64)
    found = ordered_sum(values, order, threads)
    assert found.dtype == np.float64
    assert not found[:, 0].any()
    assert np.allclose(found[:, 1:], expected, rtol=1e-14)


def test_the_tensor_form_is_the_same_in_both_types():
    values = torch.rand(3, 50)
    order = torch.randperm(50)[:40]
    assert torch.allclose(by_torch(values, order), by_torch(values.double(), order), atol=1e-12)


def test_small_masses_survive_large_ones():
    rows = torch.tensor([[1.0, 1e-12, 1e-13]])
    sums = by_torch(rows, torch.tensor([0, 1, 2]))[0]
    assert (sums[2] - sums[1]).item() == pytest.approx(1e-12, rel=1e-3)
