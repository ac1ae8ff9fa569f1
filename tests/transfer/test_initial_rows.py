from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.transfer.initial.rows import averages, chosen

LISTS = st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=1, max_size=8)


def ragged(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    return offsets.astype(np.int64), np.array([id for ids in lists for id in ids], np.int64)


def test_averages_by_hand():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [8.0, 0.0]])
    found = averages(rows, ragged([[1], [0, 1], [0, 0, 2], []]))
    expected = [[3.0, 4.0], [2.0, 3.0], [10 / 3, 4 / 3], [4.0, 2.0]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


@settings(deadline=None)
@given(LISTS)
def test_averages_equal_a_loop(lists):
    rows = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [rows[ids].mean(0) if ids else rows.mean(0) for ids in lists]
    torch.testing.assert_close(averages(rows, ragged(lists)), torch.stack(expected))


@settings(deadline=None)
@given(LISTS, st.data())
def test_chosen_lists_are_those_asked_for(lists, data):
    which = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=10))
    offsets, ids = chosen(ragged(lists), np.array(which, np.int64))
    found = [ids[start:end].tolist() for start, end in pairwise(offsets)]
    assert found == [lists[k] for k in which]


def test_no_list_gives_no_row():
    found = averages(torch.ones(4, 3, dtype=torch.bfloat16), ragged([]))
    assert found.shape == (0, 3)
    assert found.dtype == torch.bfloat16
