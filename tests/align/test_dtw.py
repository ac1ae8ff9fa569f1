"""Time warping: by hand, and the path of the plain re-statement, with numba and without."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.align import dtw, dtw_compiled
from crosstill.align.dtw import (
    byte_window,
    dtw_path,
    entropy_weights,
    path_numpy,
    token_distances,
)
from crosstill.errors import AlignmentError
from oracle import dtw as oracle

TOKENS = st.lists(st.text("ab é", max_size=4), min_size=1, max_size=12)
ENTROPIES = st.lists(st.floats(0, 12), min_size=12, max_size=12)


def run(teacher, student, teacher_weight, student_weight, **options):
    return dtw_path(
        token_distances(teacher, student),
        np.array(teacher_weight),
        np.array(student_weight),
        **options,
    )


def steps_of(path):
    return list(zip(path.teacher.tolist(), path.student.tolist(), strict=True))


def test_weights_by_hand():
    weight = entropy_weights(np.array([2.0, 3.0, 4.0]))
    assert weight == pytest.approx([3 / (1 + math.exp(2)) + 3, 4.5, 3 / (1 + math.exp(-2)) + 3])
    assert entropy_weights(np.array([2.0, 3.0, 4.0]), integer=True).tolist() == [3, 4, 5]


def test_integer_weights_change_where_the_released_code_has_them_change():
    x = np.array([0.0, 0.3266, 0.3268, 0.6732, 0.6734, 1.0])
    assert entropy_weights(x, integer=True).tolist() == [3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("entropy", [[], [1.5], [2.0, 2.0], [2.0, 2.0 + 1e-8]], ids=str)
def test_entropies_that_do_not_differ_weigh_as_the_lowest(entropy):
    weight = entropy_weights(np.array(entropy))
    assert weight == pytest.approx([3 / (1 + math.exp(2)) + 3] * len(entropy))
    assert entropy_weights(np.array(entropy), integer=True).tolist() == [3.0] * len(entropy)


@given(ENTROPIES, st.booleans())
def test_weights_equal_the_restatement(entropies, integer):
    weight = entropy_weights(np.array(entropies), integer=integer)
    assert weight == pytest.approx(oracle.weights(entropies, integer), rel=1e-12)


@given(st.text("abc é", max_size=9), st.text("abc é", max_size=9))
def test_distances_equal_the_restatement(a, b):
    assert token_distances([a], [b]).unique.tolist() == [[oracle.levenshtein(a, b)]]


def test_ties_go_to_both_then_to_the_teacher_then_to_the_student():
    # Everything costs nothing: both sides move together for as long as they can.
    assert steps_of(run(["a"] * 3, ["a"] * 3, [3.0] * 3, [3.0] * 3)) == [(0, 0), (1, 1), (2, 2)]
    path = run(["a"] * 3, ["a"] * 2, [3.0] * 3, [3.0] * 2)
    assert steps_of(path) == [(0, 0), (1, 0), (2, 1)]
    # From the end: teacher back and student back cost the same, going back on both costs more.
    path = run(["b", "a"], ["b", "a"], [1.0, 1.0], [1.0, 1.0])
    assert steps_of(path) == [(0, 0), (1, 1)]
    path = run(["x", "a"], ["y", "a"], [1.0, 1.0], [1.0, 1.0])
    assert path.cost == 1.0
    teacher_first = run(["a", "x"], ["x", "a"], [1.0, 1.0], [1.0, 1.0])
    assert steps_of(teacher_first) == oracle.path(["a", "x"], ["x", "a"], [1.0, 1.0], [1.0, 1.0])[0]


@given(TOKENS, TOKENS, ENTROPIES, ENTROPIES, st.booleans())
def test_the_path_equals_the_restatement(teacher, student, one, two, integer):
    weights = (
        entropy_weights(np.array(one[: len(teacher)]), integer=integer),
        entropy_weights(np.array(two[: len(student)]), integer=integer),
    )
    path = run(teacher, student, *weights)
    steps, cost = oracle.path(teacher, student, *weights)
    assert steps_of(path) == steps
    assert path.cost == cost
    assert path.gap == 0.0


@given(TOKENS, TOKENS, ENTROPIES, st.integers(1, 4))
def test_numpy_and_numba_agree_within_a_band_too(teacher, student, entropies, width):
    distances = token_distances(teacher, student)
    weight = entropy_weights(np.array(entropies))
    ends = [np.cumsum([len(token) for token in side]) for side in (teacher, student)]
    for window in (
        (np.zeros(len(teacher), np.int64), np.full(len(teacher), len(student), np.int64)),
        byte_window(*ends, width),
    ):
        given = (distances.unique, distances.teacher, distances.student,
                 weight[: len(teacher)], weight[: len(student)], *window)  # fmt: skip
        for one, two in zip(dtw_compiled.path(*given), path_numpy(*given), strict=True):
            assert np.array_equal(one, two)


@pytest.mark.parametrize(("rows", "columns"), [(128, 40), (129, 300), (300, 129), (257, 1)])
@pytest.mark.parametrize("width", [None, 1, 7, 60])
@pytest.mark.parametrize("kind", [np.uint8, np.int32])
def test_numpy_and_numba_agree_beyond_one_strip(rows, columns, width, kind):
    rng = np.random.default_rng([rows, columns, width or 0])
    unique = rng.integers(0, 4, (9, 11)).astype(kind)
    # Whole weights: many paths cost the same, and each tie must go the same way.
    weights = [rng.integers(0, 3, size).astype(float) for size in (rows, columns)]
    window = np.zeros(rows, np.int64), np.full(rows, columns, np.int64)
    if width:
        sides = (columns, rows), (rows, columns)
        ends = (np.cumsum(rng.integers(0, most, size)) for most, size in sides)
        window = byte_window(*ends, width)
    given = (unique, rng.integers(0, 9, rows), rng.integers(0, 11, columns), *weights, *window)
    for one, two in zip(dtw_compiled.path(*given), path_numpy(*given), strict=True):
        assert np.array_equal(one, two)


def test_a_string_too_long_for_a_byte_keeps_its_distance():
    long = "a" * 300
    assert token_distances([long], ["b"]).unique.tolist() == [[300]]
    assert run([long, "b"], [long], [1.0, 1.0], [1.0]).cost == 300.0


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ([0, 0], [2, 2, 2]),
        ([1, 1, 1], [2, 2, 2]),
        ([0, 0, 0], [1, 1, 1]),
        ([0, 1, 0], [2, 2, 2]),
        ([0, 0, 0], [2, 1, 2]),
        ([0, 2, 1], [1, 2, 2]),
    ],
    ids=["too few", "late", "early", "back", "back at the end", "empty"],
)
def test_a_window_without_a_path_is_refused(low, high):
    with pytest.raises(AlignmentError, match="byte_window"):
        run(["a", "b", "c"], ["a", "b"], [1.0] * 3, [1.0] * 2,
            window=(np.array(low), np.array(high)))  # fmt: skip


def test_a_window_with_a_hole_is_refused():
    with pytest.raises(AlignmentError, match="byte_window"):
        run(["a", "b"], ["a", "b", "c"], [1.0] * 2, [1.0] * 3,
            window=(np.array([0, 2]), np.array([1, 3])))  # fmt: skip


@given(TOKENS, TOKENS, ENTROPIES, st.integers(1, 12))
def test_a_band_never_costs_less_and_its_gap_is_no_lie(teacher, student, entropies, width):
    weights = (
        [3 + h for h in entropies[: len(teacher)]],
        [3 + h for h in entropies[-len(student) :]],
    )
    ends = [np.cumsum([len(token) for token in side]) for side in (teacher, student)]
    low, high = byte_window(*ends, width)
    exact = run(teacher, student, *weights)
    banded = run(teacher, student, *weights, window=(low, high))
    steps, cost = oracle.path(teacher, student, *weights, lambda i, j: low[i] <= j < high[i])
    assert steps_of(banded) == steps
    assert banded.cost == cost
    assert banded.gap >= banded.cost - exact.cost - 1e-9
    assert banded.gap >= 0.0


def test_a_band_as_wide_as_the_text_is_exact():
    teacher, student = list("abcab"), ["ab", "ca", "b"]
    ends = [np.cumsum([len(token) for token in side]) for side in (teacher, student)]
    weights = [3.0] * 5, [4.0] * 3
    banded = run(teacher, student, *weights, window=byte_window(*ends, 3))
    assert steps_of(banded) == steps_of(run(teacher, student, *weights))
    assert banded.gap == 0.0


def test_a_narrow_band_is_told():
    teacher, student = list("aaaabcde"), list("abcde")
    weights = [3.0] * 8, [3.0] * 5
    banded = run(teacher, student, *weights, window=byte_window(np.arange(8), np.arange(5), 1))
    assert run(teacher, student, *weights).cost == 0.0
    assert banded.gap >= banded.cost > 0.0


@pytest.mark.parametrize(("teacher", "student"), [([], ["a"]), (["a"], []), ([], [])])
def test_nothing_to_align_is_said(teacher, student):
    with pytest.raises(AlignmentError, match="nothing to align"):
        run(teacher, student, [1.0] * len(teacher), [1.0] * len(student))


def test_without_numba_the_path_is_the_same(monkeypatch):
    teacher, student = ["ab", "c", "de"], ["a", "bc", "d", "e"]
    weights = [3.0, 5.0, 4.0], [4.0, 3.0, 3.0, 5.0]
    expected = run(teacher, student, *weights)
    monkeypatch.setattr(dtw, "_compiled", lambda: None)
    plain = run(teacher, student, *weights)
    assert steps_of(plain) == steps_of(expected)
    assert plain.cost == expected.cost
