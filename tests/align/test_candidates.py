"""CDM's map: by hand, equal to the plain re-statement, and every pair considered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.align import candidates
from crosstill.align.candidates import CandidateMap
from crosstill.align.symbols import byte_strings, character_strings, symbol_table, with_specials
from oracle import cdm as oracle
from oracle import dtw

LONG = st.builds(
    lambda head, tail: head * 66 + tail, st.sampled_from("ab"), st.text("ab", max_size=3)
)
NAMES = st.lists(st.one_of(st.text("ab é東", max_size=5), LONG), min_size=3, max_size=14)


def shared_of(student, teacher):
    """One-to-one pairs of equal strings, lowest ids."""
    found = {}
    for s, name in enumerate(student):
        if name and name in teacher and name not in found:
            found[name] = (s, teacher.index(name))
    return np.array(sorted(found.values()), np.int64).reshape(-1, 2)


def pairs_of(mapped, g):
    count = mapped.count[g]
    ids = zip(mapped.student_ids[g, :count].tolist(), mapped.teacher_ids[g, :count].tolist(),
              strict=True)  # fmt: skip
    found = list(ids)
    assert len(set(found)) == len(found)
    assert not mapped.student_ids[g, count:].any()
    return set(found)


def run(student, teacher, student_top, teacher_top, theta=0.3, shared=None):
    shared = shared_of(student, teacher) if shared is None else shared
    maps = CandidateMap(student, teacher, shared, theta)
    return maps(np.array([student_top]), np.array([teacher_top]))


def test_by_hand():
    student = ["the", "color", "is", "12", "colon"]
    teacher = ["colour", "the", "as", "13", "zebra"]
    mapped = run(student, teacher, [0, 1, 2, 4], [0, 1, 2, 4])
    # colour-color 1/11, as-is 1/4; colour-colon 2/11 is too late: colour is taken.
    assert pairs_of(mapped, 0) == {(0, 1), (1, 0), (2, 2)}
    assert mapped.covered.tolist() == [[3, 3]]


def test_a_shared_token_is_paired_from_either_side():
    mapped = run(["a", "b", "c"], ["b", "a", "d"], [1, 2], [1, 2])
    # teacher's "a" has a partner outside the student's top, the student's "b" outside the teacher's
    assert pairs_of(mapped, 0) == {(0, 1), (1, 0)}
    assert mapped.covered.tolist() == [[1, 1]]


def test_id_0_is_a_token_like_another():
    assert pairs_of(run(["x", "y"], ["x", "z"], [0], [0]), 0) == {(0, 0)}


def test_theta_is_strict():
    assert pairs_of(run(["ab"], ["ac"], [0], [0], theta=0.25), 0) == set()
    assert pairs_of(run(["ab"], ["ac"], [0], [0], theta=0.2501), 0) == {(0, 0)}


def test_ties_go_to_the_better_rank_of_the_student_then_of_the_teacher():
    student, teacher = ["abcd", "abce"], ["abcf", "abcg"]
    assert pairs_of(run(student, teacher, [1, 0], [1, 0]), 0) == {(1, 1), (0, 0)}
    assert pairs_of(run(student, teacher, [1], [0, 1]), 0) == {(1, 0)}
    assert pairs_of(run(student, teacher, [0, 1], [1]), 0) == {(0, 1)}


def test_tokens_that_spell_nothing_are_paired_by_role_alone():
    shared = np.array([[0, 0]])
    mapped = run(["", "", "a"], ["", "", "b"], [0, 1, 2], [0, 1, 2], shared=shared)
    assert pairs_of(mapped, 0) == {(0, 0)}


def test_pieces_of_characters_are_not_one_another():
    student, teacher = (character_strings([bytes([b])]) for b in (0xE6, 0xE7))
    assert student != teacher
    assert pairs_of(run(student, teacher, [0], [0]), 0) == set()


def test_characters_and_bytes_measure_differently():
    student, teacher = ["é".encode()], ["è".encode()]
    by_bytes = run(byte_strings(student), byte_strings(teacher), [0], [0], theta=0.3)
    by_characters = run(character_strings(student), character_strings(teacher), [0], [0], theta=0.3)
    assert pairs_of(by_bytes, 0) == {(0, 0)}  # 1 byte of 2 and 2
    assert pairs_of(by_characters, 0) == set()  # 1 character of 1 and 1


def test_spaces_are_kept_unless_they_are_dropped():
    student, teacher = [b" P"], [b"P"]
    kept = run(byte_strings(student), byte_strings(teacher), [0], [0])
    assert pairs_of(kept, 0) == set()  # 1 of 3 is above 0.3
    dropped = (byte_strings(side, drop_spaces=True) for side in (student, teacher))
    assert pairs_of(run(*dropped, [0], [0], shared=np.zeros((0, 2), np.int64)), 0) == {(0, 0)}


@given(NAMES, NAMES, st.integers(0, 2**32), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_the_map_equals_the_restatement(student, teacher, seed, theta):
    rng = np.random.default_rng(seed)
    shared = shared_of(student, teacher)
    maps = CandidateMap(student, teacher, shared, theta)
    tops = [
        np.stack([rng.permutation(len(side))[: max(2, len(side) - 1)] for _ in range(3)])
        for side in (student, teacher)
    ]
    found, plain = maps(*tops), maps.plain(*tops)
    for g in range(3):
        expected, covered = oracle.mapping(
            tops[0][g].tolist(), tops[1][g].tolist(), student, teacher, shared, theta
        )
        assert pairs_of(found, g) == expected
        assert found.covered[g].tolist() == list(covered)
    for name in ("student_ids", "teacher_ids", "count", "covered"):
        assert np.array_equal(getattr(found, name), getattr(plain, name))


@given(st.text("ab東", max_size=90), st.text("ab東", max_size=90))
def test_no_pair_under_theta_is_passed_over(a, b):
    total = len(a) + len(b)
    near = bool(a) and bool(b) and dtw.levenshtein(a, b) / total < 0.3
    mapped = run([a], [b], [0], [0], shared=np.zeros((0, 2), np.int64))
    assert pairs_of(mapped, 0) == ({(0, 0)} if near else set())


@pytest.mark.parametrize("numba", [True, False], ids=["numba", "plain"])
def test_distances_may_be_given(numba, monkeypatch):
    if not numba:
        monkeypatch.setattr(candidates, "_compiled", lambda: None)
    student, teacher = ["one", "two", ""], ["eins", "zwei", "drei"]
    maps = CandidateMap(student, teacher, np.zeros((0, 2), np.int64), 0.3)
    distance = np.array([[[0.2, 0.1, 0.9], [0.15, 0.25, 0.3], [0.0, 0.0, 0.0]]], np.float32)
    mapped = maps(np.array([[0, 1, 2]]), np.array([[0, 1, 2]]), distance)
    assert pairs_of(mapped, 0) == {(0, 1), (1, 0)}  # the empty token is never near


@given(st.floats(0.01, 1.5), st.integers(0, 40))
def test_the_largest_distance_of_a_pair_is_found(theta, longest):
    limit = candidates._limits(theta, longest)
    for total in range(1, longest + 1):
        near = [d for d in range(total + 1) if d / total < theta]
        assert limit[total] == near[-1]


def test_no_groups_at_all():
    maps = CandidateMap(["a"], ["a"], np.array([[0, 0]]), 0.3)
    none = np.zeros((0, 1), np.int64)
    mapped = maps(none, none)
    assert mapped.student_ids.shape == (0, 0)
    assert mapped.count.tolist() == []


def test_special_tokens_of_one_role_are_one_symbol_and_no_other_is_like_it():
    shared = np.array([[0, 1], [2, 0]])
    special = np.array([True, True, False]), np.array([False, True, True])
    student, teacher = with_specials(["", "", "a"], ["a", "", ""], *special, shared)
    assert student[0] == teacher[1]
    assert len({*student, *teacher}) == 4
    assert all(len(name) == 1 for name in (*student, *teacher))


def test_the_table_holds_the_strings():
    student, teacher = ["ba", "", "é"], ["a"]
    table = symbol_table(student, teacher)
    lengths = np.diff(table.student_starts).tolist(), np.diff(table.teacher_starts).tolist()
    assert lengths == ([2, 0, 1], [1])
    assert table.student[1] == table.teacher[0]
    assert table.symbols == 3
    assert [int(mask).bit_count() for mask in table.student_mask] == [2, 0, 1]
