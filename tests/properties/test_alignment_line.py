"""Properties of the common line under arbitrary rewriting: changes, deletions, insertions."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crosstill.align.coordinates import Rewriting, common_line
from crosstill.align.kernel import chunk_ids
from oracle.alignment import most_chunks, places_of_edge

LETTERS = b"abcdefghijklmnopqrstuvwxyz"


@st.composite
def rewritings(draw, n_bytes):
    """Pieces `(o0, o1, n0, n1, unchanged)` of a random rewriting of `n_bytes` bytes.

    An insertion never touches a deletion: together they would be a change.
    """
    pieces, old, new, lopsided = [], 0, 0, False
    while old < n_bytes:
        size = draw(st.integers(0 if not lopsided else 1, min(3, n_bytes - old)))
        unchanged = size > 0 and draw(st.booleans())
        least = 0 if size and not lopsided else 1
        image = size if unchanged else draw(st.integers(least, 3))
        pieces.append((old, old + size, new, new + image, unchanged))
        old, new, lopsided = old + size, new + image, size == 0 or image == 0
    if not lopsided and draw(st.booleans()):
        pieces.append((old, old, new, new + draw(st.integers(1, 2)), False))
    return pieces


@st.composite
def sides(draw, n_bytes, rewrite=True):
    pieces = draw(rewritings(n_bytes)) if rewrite else [(0, n_bytes, 0, n_bytes, True)]
    end = pieces[-1][3]
    cut = draw(st.lists(st.booleans(), min_size=end, max_size=end))
    return pieces, sorted({0, end} | {edge for edge in range(1, end) if cut[edge]})


def rewriting(pieces):
    n_bytes = pieces[-1][1]
    spelled = b"".join(
        LETTERS[o0:o1] if unchanged else b"?" * (n1 - n0) for o0, o1, n0, n1, unchanged in pieces
    )
    return Rewriting.of(LETTERS[:n_bytes], spelled, np.array([piece[:4] for piece in pieces]))


def chunk_edges(edges, chunk, n):
    """For each chunk, the edges in the side's own bytes where it starts and ends."""
    spans = []
    for k in range(n):
        tokens = np.flatnonzero(chunk == k)
        assert (np.diff(tokens) == 1).all()
        spans.append((edges[tokens[0]], edges[tokens[-1] + 1]))
    return spans


def aligned(student, teacher):
    (student_pieces, student_edges), (teacher_pieces, teacher_edges) = student, teacher
    on_student, on_teacher = common_line(
        np.array(student_edges),
        rewriting(student_pieces),
        np.array(teacher_edges),
        rewriting(teacher_pieces),
    )
    return chunk_ids(on_student[:-1], on_student[1:], on_teacher[:-1], on_teacher[1:])


both = st.integers(1, 8).flatmap(lambda n: st.tuples(sides(n), sides(n)))


@settings(max_examples=400)
@given(both)
@example(
    (  # both strip, one more than the other
        ([(0, 2, 0, 0, False), (2, 4, 0, 2, True), (4, 6, 2, 2, False)], [0, 1, 2]),
        ([(0, 1, 0, 0, False), (1, 6, 0, 5, True)], [0, 1, 2, 3, 5]),
    )
)
def test_every_possible_boundary_is_found_and_no_other(pair):
    student, teacher = pair
    student_chunk, teacher_chunk, n = aligned(student, teacher)
    assert n == most_chunks(student[1], student[0], teacher[1], teacher[0])
    spans = (
        chunk_edges(student[1], student_chunk, n),
        chunk_edges(teacher[1], teacher_chunk, n),
    )
    for own, other in zip(*spans, strict=True):
        for s, t in zip(own, other, strict=True):
            assert places_of_edge(s, student[0]) & places_of_edge(t, teacher[0])
    if n:  # the chunks tile both sides
        assert (student_chunk >= 0).all()
        assert (teacher_chunk >= 0).all()


@settings(max_examples=200)
@given(both)
def test_symmetric(pair):
    student, teacher = pair
    forth, back = aligned(student, teacher), aligned(teacher, student)
    assert forth[2] == back[2]
    assert forth[0].tolist() == back[1].tolist()
    assert forth[1].tolist() == back[0].tolist()


@settings(max_examples=200)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(sides(n, False), sides(n, False))))
def test_without_rewriting_bytes_are_the_line(pair):
    (student_pieces, student), (teacher_pieces, teacher) = pair
    on_student, on_teacher = common_line(
        np.array(student), rewriting(student_pieces), np.array(teacher), rewriting(teacher_pieces)
    )
    assert on_student.tolist() == [on_student[1] // student[1] * edge for edge in student]
    assert set(on_student) & set(on_teacher) == {
        on_student[1] // student[1] * edge for edge in set(student) & set(teacher)
    }


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 0, 0, 1, False), (0, 1, 1, 1, False)],  # inserted, then deleted: a change
        [(0, 1, 0, 0, False), (1, 1, 0, 1, False)],
        [(0, 0, 0, 1, False), (0, 0, 1, 2, False), (0, 1, 2, 3, True)],  # inserted in two steps
        [(0, 1, 0, 1, True), (1, 1, 1, 2, False), (1, 1, 2, 3, False)],
    ],
)
def test_insertions_and_deletions_that_touch_are_one_piece(pieces):
    """As a normaliser and a pre-tokenizer in turn may leave them."""
    n_bytes = pieces[-1][3]
    for edges in ([0, n_bytes], list(range(n_bytes + 1))):
        student_chunk, teacher_chunk, n = aligned((pieces, edges), ([(0, 1, 0, 1, True)], [0, 1]))
        assert n == 1
        assert student_chunk.tolist() == [0] * (len(edges) - 1)
        assert teacher_chunk.tolist() == [0]
