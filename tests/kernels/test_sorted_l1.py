"""The counting kernel against sorting, on rows of every shape."""

import doctest

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill.functional.uld import compare_by_sorting
from crosstill.kernels import sorted_l1 as module
from crosstill.kernels.sorted_l1 import available, sorted_l1
from oracle import uld as oracle

pytestmark = pytest.mark.skipif(not available(), reason="numba is not installed")

# Few distinct values, zeros among them: ties within a side and across both.
VALUES = st.sampled_from([0.0, 1e-42, 1e-9, 0.1, 0.25, 0.250001, 0.3, 0.5, 1.0])


@given(st.lists(VALUES, min_size=1, max_size=12), st.lists(VALUES, min_size=1, max_size=12))
def test_equals_the_oracle(student, teacher):
    p, q = (np.array([row], np.float32) for row in (student, teacher))
    value, slope = sorted_l1(p, q)
    assert value[0] == pytest.approx(
        oracle.sorted_distance(p[0].tolist(), q[0].tolist()), rel=1e-12
    )
    expected = oracle.slope(p[0].tolist(), q[0].tolist())
    ordered = sorted(q[0].tolist(), reverse=True) + [0.0] * len(student)
    for i, rank in enumerate(ranks(p[0])):
        # |x| has slope 1 on either side of 0, so a partner of the very same value binds nothing
        if all(p[0][i] != ordered[r] for r in rank):
            assert slope[0, i] == pytest.approx(expected[i])
        assert abs(slope[0, i]) <= 1
    for i, j in np.ndindex(len(student), len(student)):
        assert p[0][i] != p[0][j] or slope[0, i] == slope[0, j]


def ranks(row):
    """The ranks that the value of each entry takes."""
    ordered = sorted(row.tolist(), reverse=True)
    return [[r for r, value in enumerate(ordered) if value == x] for x in row.tolist()]


@pytest.mark.parametrize(
    ("student", "teacher", "scale", "noise"),
    [
        (3000, 5000, 3.0, None),
        (5000, 3000, 8.0, None),
        (4000, 4000, 3.0, 0.01),
        (900, 900, 0, None),
    ],
)
def test_equals_sorting_on_wide_rows(student, teacher, scale, noise):
    generator = torch.Generator().manual_seed(student)
    z = torch.randn(3, student, generator=generator) * scale
    if noise is None:
        y = torch.randn(3, teacher, generator=generator) * scale
    else:
        y = z + noise * torch.randn(3, teacher, generator=generator)
    p, q = z.softmax(-1), y.softmax(-1)
    value, slope = sorted_l1(p.numpy(), q.numpy())
    expected, expected_slope = compare_by_sorting(p.double(), q.double())
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-9)
    assert (slope != expected_slope.numpy()).mean() < 2e-3  # partners of the very same value


def check_against_sorting(p, q):
    """The value of sorting in float64, its slope wherever a partner differs, equals for equals."""
    value, slope = sorted_l1(p[None], q[None])
    width = max(len(p), len(q))
    mine, other = (np.zeros(width), np.zeros(width))
    order = np.argsort(-p, kind="stable")
    mine[: len(p)], other[: len(q)] = p[order], -np.sort(-q)
    assert value[0] == pytest.approx(np.abs(mine - other).sum(), rel=1e-11)
    sign = np.sign(mine - other)[: len(p)]
    _, run, size = np.unique(-mine[: len(p)], return_inverse=True, return_counts=True)
    expected = (np.bincount(run, sign) / size)[run]
    bound = np.bincount(run, sign != 0) == size
    np.testing.assert_allclose(slope[0, order][bound[run]], expected[bound[run]], rtol=1e-6)
    assert (np.abs(slope) <= 1).all()
    for k in np.flatnonzero(run[1:] == run[:-1]):
        assert slope[0, order[k]] == slope[0, order[k + 1]]


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.sampled_from([0.0, 0.01, 1.0, 10.0, 40.0]),  # flat, ordinary, beyond what float32 holds
    st.sampled_from([0.0, 1e-7, 1e-4, 1e-2]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.booleans(),
)
def test_nearly_equal_rows_of_every_range(seed, sizes, scale, noise, zeros, ties):
    random = np.random.default_rng(seed)
    z = scale * random.standard_normal(max(sizes))
    y = random.permutation(z + noise * random.standard_normal(len(z)))
    z, y = z[: sizes[0]], y[: sizes[1]]
    if ties:
        z, y = z.round(1), y.round(1)
    z[random.random(len(z)) < zeros] = -np.inf
    y[random.random(len(y)) < zeros] = -np.inf
    z[0] = y[0] = max(z.max(), y.max(), 0.0)
    p, q = (np.exp(x - x.max()) for x in (z, y))
    check_against_sorting(*((x / x.sum()).astype(np.float32) for x in (p, q)))


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 300))
def test_neighbouring_numbers(seed, student, teacher):
    # Every exponent from subnormal numbers to 1, few numbers apart: the last bits decide.
    random = np.random.default_rng(seed)
    centre = random.integers(0, 0x3F800000 - 64, 4)
    rows = (
        (random.choice(centre, size) + random.integers(0, 64, size)).astype(np.uint32)
        for size in (student, teacher)
    )
    check_against_sorting(*(bits.view(np.float32) for bits in rows))


def test_a_row_leaves_nothing_for_the_next():
    generator = torch.Generator().manual_seed(4)
    z = torch.randn(6, 2000, generator=generator) * torch.tensor([[0.01], [30.0], [3.0]] * 2)
    y = z + 0.001 * torch.randn(6, 2000, generator=generator)
    p, q = z.softmax(-1).numpy(), y.softmax(-1).numpy()
    value, slope = sorted_l1(p, q)
    for row in range(len(p)):
        alone = sorted_l1(p[row : row + 1], q[row : row + 1])
        assert alone[0][0] == value[row]
        np.testing.assert_array_equal(alone[1][0], slope[row])


def test_zeros_meet_what_the_longer_side_has():
    p = np.array([[0.5, 0.0, 0.0, 0.5, 0.0]], np.float32)
    q = np.array([[0.25, 0.25, 0.25, 0.25]], np.float32)
    value, slope = sorted_l1(p, q)
    assert value[0] == 1.0
    np.testing.assert_allclose(slope[0], [1, -2 / 3, -2 / 3, 1, -2 / 3], rtol=1e-6)
    # four equal entries: two meet 0.5, two meet 0
    np.testing.assert_array_equal(sorted_l1(q, p)[1][0], np.zeros(4))


def test_bfloat16_rows_are_full_of_ties():
    generator = torch.Generator().manual_seed(0)
    z, y = (torch.randn(2, n, generator=generator).bfloat16().float() for n in (2000, 2500))
    p, q = z.softmax(-1), y.softmax(-1)
    assert len(p[0].unique()) < 0.6 * p.shape[1]
    value, slope = sorted_l1(p.numpy(), q.numpy())
    expected, expected_slope = compare_by_sorting(p, q)
    np.testing.assert_allclose(value, expected.numpy(), rtol=1e-5)
    np.testing.assert_allclose(slope, expected_slope.numpy(), atol=1e-6)


def test_equal_rows_have_no_slope():
    row = torch.randn(1, 700, generator=torch.Generator().manual_seed(1)).softmax(-1).numpy()
    value, slope = sorted_l1(row, row[:, ::-1].copy())
    assert value[0] == 0
    assert not slope.any()


def test_threads_share_the_rows():
    generator = torch.Generator().manual_seed(2)
    p, q = (torch.randn(7, n, generator=generator).softmax(-1).numpy() for n in (50, 60))
    one, three = sorted_l1(p, q), sorted_l1(p, q, threads=3)
    np.testing.assert_array_equal(one[0], three[0])
    np.testing.assert_array_equal(one[1], three[1])


def test_no_rows_and_no_probabilities():
    value, slope = sorted_l1(np.zeros((0, 4), np.float32), np.zeros((0, 3), np.float32))
    assert value.shape == (0,)
    assert slope.shape == (0, 4)
    broken = np.array([[np.nan, 0.5]], np.float32)
    assert np.isnan(sorted_l1(broken, np.array([[0.5, 0.5]], np.float32))[0][0])


def test_examples_run():
    assert doctest.testmod(module).failed == 0
