"""Top entries, log-sum-exp and entropy of rows against numpy in float64."""

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.kernels import row_summary as module
from crosstill.kernels.row_summary import available, row_summary

pytestmark = pytest.mark.skipif(not available(), reason="numba is not installed")

# Around the widths of blocks, of merged blocks and of the strips that are summed.
SIZES = st.sampled_from([1, 2, 3, 31, 127, 128, 129, 159, 161, 300, 1000, 4001, 9000])
TOPS = st.sampled_from([1, 2, 3, 7, 40, 100])


def expected(row, k):
    """(ids, norm, entropy) from the formulas."""
    ids = np.array(sorted(range(len(row)), key=lambda i: (-row[i], i))[:k])
    wide = row.astype(np.float64)
    share = np.exp(wide - wide.max())
    p = share / share.sum()
    return ids, wide.max() + np.log(share.sum()), -(p[p > 0] * np.log(p[p > 0])).sum()


def check(logits, k, threads=1):
    before = logits.copy()
    ids, norm, entropy = row_summary(logits, k, threads)
    assert (ids.dtype, norm.dtype, entropy.dtype) == (np.int64, np.float64, np.float64)
    assert ids.shape == (len(logits), min(k, logits.shape[1]))
    for n, row in enumerate(logits):
        top, total, nats = expected(row, k)
        assert ids[n].tolist() == top.tolist()
        assert norm[n] == pytest.approx(total, rel=1e-6, abs=2e-7)
        assert entropy[n] == pytest.approx(nats, rel=1e-6, abs=1e-7)
    assert np.array_equal(logits, before)


@given(
    st.integers(0, 10**6),
    SIZES,
    TOPS,
    st.sampled_from([0.01, 1.0, 5.0, 100.0]),
    st.sampled_from([0.0, 0.5, 0.99]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([0.0, -50.0, 1e4]),
)
def test_equals_the_formulas(seed, size, k, scale, masked, decimals, constant):
    random = np.random.default_rng(seed)
    logits = (constant + scale * random.standard_normal((2, size))).astype(np.float32)
    logits[random.random(logits.shape) < masked] = -np.inf
    logits[:, random.integers(size)] = constant
    if decimals is not None:  # ties, among them of the last that has a place
        logits = logits.round(decimals)
    check(logits, k)


@given(st.integers(0, 1000), st.integers(0, 9), st.integers(1, 4))
def test_threads_share_the_rows(seed, rows, threads):
    logits = np.random.default_rng(seed).standard_normal((rows, 700), np.float32)
    check(logits, 5, threads)


@pytest.mark.parametrize("places", ["ascending", "descending", "one block", "one merged block"])
def test_the_largest_wherever_they_lie(places):
    logits = np.zeros((1, 64_007), np.float32)
    size = logits.shape[1]
    blocks = size // 32
    at = {
        "ascending": np.arange(size),
        "descending": np.arange(size)[::-1],
        "one block": np.arange(5, blocks * 32, blocks),
        "one merged block": np.arange(0, 400 * 160, 160),
    }[places]
    logits[0, at] = np.linspace(1, 9, len(at), dtype=np.float32)
    check(logits, 100)
    check(logits, 1)


def test_the_columns_after_the_last_block_count():
    logits = np.random.default_rng(3).standard_normal((1, 128 + 31)).astype(np.float32)
    logits[0, -31:] += 20.0
    check(logits, 1)  # 31 columns are left of blocks of 32: more than there are blocks
    check(logits, 3)


def test_equal_numbers_with_different_signs():
    logits = np.zeros((1, 5000), np.float32)
    logits[0, ::2] = -0.0
    assert row_summary(logits, 4)[0].tolist() == [[0, 1, 2, 3]]


def test_small_entropies_keep_their_digits():
    for below in (1.0, 10.0, 20.0):
        logits = np.array([[2.0, 2.0 - below] + 200 * [-np.inf]], np.float32)
        share = np.exp(-below)
        nats = np.log1p(share) + below * share / (1 + share)
        assert row_summary(logits, 1)[2][0] == pytest.approx(nats, rel=1e-6)


def test_a_single_finite_entry_has_no_entropy():
    logits = np.full((1, 3000), -np.inf, np.float32)
    logits[0, 1234] = 7.0
    ids, norm, entropy = row_summary(logits, 3)
    assert ids.tolist() == [[1234, 0, 1]]
    assert norm[0] == 7.0
    assert 0.0 <= entropy[0] < 1e-28


@pytest.mark.parametrize("size", [3, 5000])
@pytest.mark.parametrize("nan", [np.float32(np.nan), -np.float32(np.nan)], ids=["plus", "minus"])
@pytest.mark.parametrize("column", [0, 1, -1])
def test_a_nan_comes_first_and_leaves_no_number(size, nan, column):
    logits = np.random.default_rng(0).standard_normal((3, size)).astype(np.float32)
    logits[1, column] = nan
    ids, norm, entropy = row_summary(logits, 2)
    rest = logits[1].copy()
    rest[column] = np.inf
    assert ids[1].tolist() == np.argsort(-rest)[:2].tolist()
    assert np.isnan([norm[1], entropy[1]]).all()
    assert np.isfinite([*norm[[0, 2]], *entropy[[0, 2]]]).all()


def test_rows_without_a_finite_best():
    logits = np.zeros((2, 600), np.float32)
    logits[0], logits[1, 5] = -np.inf, np.inf
    ids, norm, entropy = row_summary(logits, 2)
    assert ids.tolist() == [[0, 1], [5, 0]]
    assert np.isnan([norm, entropy]).all()


def test_the_example():
    assert doctest.testmod(module).failed == 0
