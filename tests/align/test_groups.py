"""Groups of a path, and which of them spell the same on both sides."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.align.dtw import Path
from crosstill.align.groups import matched, path_groups, ranges
from crosstill.align.symbols import symbol_table
from oracle import dtw as oracle


@st.composite
def paths(draw):
    steps, i, j = [(0, 0)], 0, 0
    for move in draw(st.lists(st.integers(0, 2), max_size=20)):
        i, j = i + (move != 2), j + (move != 1)
        steps.append((i, j))
    return steps


def path_of(steps):
    teacher, student = np.array(steps, np.int64).T
    return Path(teacher, student, 0.0, 0.0)


def sides_of(groups):
    """As the oracle has them."""
    found = []
    for side in (groups.teacher, groups.student):
        shares = [{} for _ in range(groups.count)]
        for group, token, weight in zip(side.group, side.token, side.weight, strict=True):
            assert token not in shares[group]
            shares[group][int(token)] = weight
        found.append(shares)
    return found


@given(paths())
def test_groups_equal_the_restatement(steps):
    groups = path_groups(path_of(steps))
    for found, expected in zip(sides_of(groups), oracle.groups(steps), strict=True):
        assert [list(shares) for shares in found] == [sorted(shares) for shares in expected]
        for one, two in zip(found, expected, strict=True):
            assert one == pytest.approx(two)
            assert sum(one.values()) == pytest.approx(1.0)


@given(paths())
def test_first_rows_are_the_first_of_each_group(steps):
    mean, first = path_groups(path_of(steps)), path_groups(path_of(steps), rows="first")
    assert first.count == mean.count
    for found, expected in zip(sides_of(first), sides_of(mean), strict=True):
        assert found == [{min(shares): 1.0} for shares in expected]


def test_every_token_of_both_sides_is_in_a_group():
    steps = [(0, 0), (1, 0), (2, 1), (2, 2), (3, 2), (4, 3)]
    teacher, student = sides_of(path_groups(path_of(steps)))
    assert set().union(*teacher) == set(range(5))
    assert set().union(*student) == set(range(4))


def test_matched_by_hand():
    student, teacher = ["ab", "c", "", "x"], ["a", "b", "c", "y"]
    table = symbol_table(student, teacher)
    # "ab" against "a" "b"; "c" against "c"; "x" against "y".
    steps = [(0, 0), (1, 0), (2, 1), (3, 2)]
    groups = path_groups(path_of(steps))
    same = matched(groups, np.array([0, 1, 2, 3]), np.array([0, 1, 3]), table)
    assert same.tolist() == [True, True, False]


@given(paths(), st.data())
def test_matched_equals_joining_strings(steps, data):
    names = ["", "a", "b", "ab", "ba"]
    table = symbol_table(names, names)
    n, m = steps[-1][0] + 1, steps[-1][1] + 1
    teacher, student = (
        np.array(data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)))
        for size in (n, m)
    )
    groups = path_groups(path_of(steps))
    expected = [
        "".join(names[teacher[i]] for i in sorted(one))
        == "".join(names[student[j]] for j in sorted(two))
        for one, two in zip(*sides_of(groups), strict=True)
    ]
    assert matched(groups, teacher, student, table).tolist() == expected


def test_ranges_of_nothing():
    assert ranges(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []
    assert ranges(np.array([3, 7]), np.array([0, 0])).tolist() == []
