"""Properties of the chunk kernel on arbitrary lines: gaps, outside tokens, empty tokens."""

from itertools import accumulate, pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.align import compiled, kernel
from oracle.alignment import chunk_of_tokens, chunks_of_line


@st.composite
def lines(draw, gaps=True):
    """Token coordinates of one side: mostly end to end, some empty, outside or after a gap."""
    at, tokens = 0, []
    for length, jump in draw(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=24)
    ):
        if gaps and jump == 9:
            tokens.append((-1, -1))
        if gaps and jump >= 7:
            at += jump - 6
        tokens.append((at, at + length))
        at += length
    return tokens


def arrays(side):
    return np.array([s for s, _ in side], np.int64), np.array([e for _, e in side], np.int64)


@settings(max_examples=300, deadline=None)
@given(lines(), lines())
def test_both_forms_equal_the_oracle(student, teacher):
    chunks = chunks_of_line(student, teacher)
    expected = chunk_of_tokens(student, chunks), chunk_of_tokens(teacher, chunks), len(chunks)
    for function in (compiled.chunk_ids, kernel.chunk_ids_numpy):
        student_chunk, teacher_chunk, n = function(*arrays(student), *arrays(teacher))
        assert (student_chunk.tolist(), teacher_chunk.tolist(), n) == expected


@settings(max_examples=200, deadline=None)
@given(lines(), lines())
def test_symmetric(student, teacher):
    forth = kernel.chunk_ids(*arrays(student), *arrays(teacher))
    back = kernel.chunk_ids(*arrays(teacher), *arrays(student))
    assert forth[2] == back[2]
    assert forth[0].tolist() == back[1].tolist()
    assert forth[1].tolist() == back[0].tolist()


@settings(max_examples=200, deadline=None)
@given(lines(gaps=False))
def test_a_side_against_itself_gives_a_chunk_a_token(side):
    solid = [token for token in side if token[0] < token[1]]
    student_chunk, teacher_chunk, n = kernel.chunk_ids(*arrays(side), *arrays(side))
    assert n == len(solid)
    assert student_chunk.tolist() == teacher_chunk.tolist()


@settings(max_examples=300, deadline=None)
@given(lines(gaps=False), lines(gaps=False), st.integers(0, 3), st.integers(0, 3))
def test_tiled_form_equals_the_general_one(student, teacher, student_prefix, teacher_prefix):
    lengths = np.arange(64, dtype=np.int32)
    total = min(sum(e - s for s, e in side) for side in (student, teacher))
    sides, coordinates = [], []
    for side, prefix in ((student, student_prefix), (teacher, teacher_prefix)):
        ids = [prefix] + [e - s for s, e in side]
        while sum(ids) > total + prefix:  # make both sides spell the same number of bytes
            ids[-1] -= min(ids[-1], sum(ids) - total - prefix)
            if ids[-1] == 0:
                ids.pop()
        ends = np.concatenate([[0], np.cumsum(ids)]) - prefix
        sides.append(np.array(ids))
        coordinates += [np.maximum(ends[:-1], 0), np.maximum(ends[1:], 0)]
    expected = [array.tolist() for array in chunk_of_arrays(coordinates)]
    for function in (compiled.tiled_chunk_ids, kernel.tiled_chunk_ids_numpy):
        *chunks, n, student_bytes, teacher_bytes = function(
            sides[0], lengths, student_prefix, sides[1], lengths, teacher_prefix
        )
        assert [c.tolist() for c in chunks] == expected
        assert n == len(set(expected[0]) - {-1})
        assert (student_bytes, teacher_bytes) == (total, total)


def chunk_of_arrays(coordinates):
    return compiled.chunk_ids(*coordinates)[:2]


@st.composite
def stretches(draw):
    """A row, stretch by stretch: kind, taught, and for each side its tokens' lengths and edges."""
    found = []
    for kind in draw(st.lists(st.sampled_from(["outside", "anchor", "content", "moved"]))):
        sides = []
        for _ in range(2):
            lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
            scale = 8 if kind == "moved" else 1
            start = draw(st.integers(-2, 3)) if kind == "moved" else draw(st.integers(0, 3))
            sides.append((lengths, list(accumulate((scale * n for n in lengths), initial=start))))
        found.append((kind, draw(st.booleans()), sides))
    return found


def as_arrays(row):
    """What `row_chunks` takes."""
    ends, extra = ([], []), ([], [])
    sizes = [sum(len(sides[k][0]) for _, _, sides in row) for k in (0, 1)]
    table = []
    for kind, taught, sides in row:
        places = []
        for own, moved, size, (lengths, edges) in zip(ends, extra, sizes, sides, strict=True):
            first, start = len(own), own[-1] if own else 0
            own.extend(start + end for end in accumulate(lengths))
            if kind == "moved":
                places += [first, len(own), 1 + size + len(moved), 0]
                moved.extend(edges)
            else:
                places += [first, len(own), first, start - edges[0]]
        if kind != "outside":
            table.append([*places, kind == "anchor", taught])
    lines = [np.array([*own, *moved], np.int64) for own, moved in zip(ends, extra, strict=True)]
    return lines[0], sizes[0], lines[1], sizes[1], np.array(table, np.int64).reshape(-1, 10)


def expected_of(row):
    """Every stretch by the oracle, one after the other."""
    labels, supervised, anchor, lengths = ([], []), [], [], []
    for kind, taught, sides in row:
        tokens = [list(pairwise(edge + 2 for edge in edges)) for _, edges in sides]
        chunks = chunks_of_line(*tokens) if kind in ("content", "moved") else []
        own = [chunk_of_tokens(side, chunks) for side in tokens]
        count = len(chunks)
        if kind == "anchor":
            own, count = [[0] * len(side) for side in tokens], 1
        for side, found in zip(labels, own, strict=True):
            side.extend(k + len(supervised) if k >= 0 else -1 for k in found)
        supervised += [taught] * count
        anchor += [kind == "anchor"] * count
        lengths += sides[0][0]
    for side in labels:
        if side and side[0] >= 0:
            supervised[side[0]] = False
    aligned = [n for n, k in zip(lengths, labels[0], strict=True) if k >= 0 and supervised[k]]
    return *labels, supervised, anchor, sum(aligned)


@settings(max_examples=300, deadline=None)
@given(stretches())
def test_rows_equal_the_oracle(row):
    for function in (compiled.row_chunks, kernel.row_chunks_numpy):
        *found, aligned = function(*as_arrays(row))
        assert (*(array.tolist() for array in found), aligned) == expected_of(row)
        assert [array.dtype for array in found] == [np.int32, np.int32, bool, bool]
