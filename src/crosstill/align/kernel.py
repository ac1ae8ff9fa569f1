"""The loops of alignment in time O(T): compiled with numba, or the same in numpy where that fails.

Both sides are given as token coordinates on one common line: token i covers `[start[i], end[i])`,
and `start[i] == -1` says that the token is outside the line. Coordinates never decrease along a
side and tokens do not overlap.

A chunk is a stretch `[a, b)` of the line that both sides tile completely with whole tokens and
that no point inside splits on both sides at once. So a chunk starts and ends where both sides have
a token edge; what lies across a seam, a gap or the end of one side belongs to no chunk, and the
next shared edge starts afresh. A token of length zero (a prefix space that stands alone) never
makes a chunk: it goes into the chunk that starts there or spans it, else into the one that ends
there.
"""

from functools import lru_cache
from types import ModuleType

import numpy as np

Chunked = tuple[np.ndarray, np.ndarray, int]
RowChunks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
_GAP = 8  # between two stretches, more than an edge is moved where it may match none


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    try:
        from crosstill.align import compiled
    except ImportError:  # no numba for this Python version or platform
        return None
    return compiled


def chunk_ids(
    student_start: np.ndarray,
    student_end: np.ndarray,
    teacher_start: np.ndarray,
    teacher_end: np.ndarray,
) -> Chunked:
    """Gives every token of both sides the index of its chunk.

    Args:
        student_start: int [Ts], where each student token starts on the common line; -1 outside.
        student_end: int [Ts], where it ends (exclusive).
        teacher_start: int [Tt], as `student_start`.
        teacher_end: int [Tt], as `student_end`.

    Returns:
        `(student_chunk int32 [Ts], teacher_chunk int32 [Tt], n)`: chunk indices from 0 to n - 1 in
        the order of the line, -1 for tokens in no chunk.

    Example:
        "ab", "cd" against "a", "bc", "d": no shared edge but the two ends.

        >>> import numpy as np
        >>> student, teacher, n = chunk_ids(*map(np.array, ([0, 2], [2, 4], [0, 1, 3], [1, 3, 4])))
        >>> student.tolist(), teacher.tolist(), n
        ([0, 0], [0, 0, 0], 1)
    """
    lines = [
        np.ascontiguousarray(line, np.int64)
        for line in (student_start, student_end, teacher_start, teacher_end)
    ]
    compiled = _compiled()
    return compiled.chunk_ids(*lines) if compiled else chunk_ids_numpy(*lines)


def tiled_chunk_ids(
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
    student_prefix: int,
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
    teacher_prefix: int,
) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """As `chunk_ids`, where both sides spell the same text end to end: from ids alone.

    Args:
        student_ids: Integers [Ts], unsigned ones at best.
        student_lengths: int32 [Vs], bytes that each student token spells.
        student_prefix: Bytes the student's tokens spell before the text.
        teacher_ids: Integers [Tt].
        teacher_lengths: int32 [Vt].
        teacher_prefix: Bytes the teacher's tokens spell before the text.

    Returns:
        `(student_chunk, teacher_chunk, n, student_bytes, teacher_bytes)`. The two last are how
        many bytes either side spells without its prefix. The caller must compare them with the
        text: where they differ from it, the chunks mean nothing.

    Raises:
        IndexError: An id has no length.
    """
    compiled = _compiled()
    run = compiled.tiled_chunk_ids if compiled else tiled_chunk_ids_numpy
    return run(
        student_ids, student_lengths, student_prefix, teacher_ids, teacher_lengths, teacher_prefix
    )


def row_chunks(
    student_ends: np.ndarray,
    n_student: int,
    teacher_ends: np.ndarray,
    n_teacher: int,
    stretches: np.ndarray,
) -> RowChunks:
    """The chunks of a row that consists of stretches, each with a line of its own.

    A stretch is a row of ten numbers. Four for the student: its first token, one behind its last,
    and where the first one starts: at `(0, *student_ends)[edge] - origin`. The tokens behind it
    end at the following places. The same four for the teacher. Then whether all of the stretch is
    one chunk (an anchor, whose bytes do not count), and whether it is taught.

    Args:
        student_ends: int64, byte ends of the student's tokens, and behind them edges that
            stretches are to have instead.
        n_student: Ts, the student's tokens.
        teacher_ends: int64, as `student_ends`.
        n_teacher: Tt.
        stretches: int64 [P, 10], in the order of the tokens. What two of them have belongs to the
            second.

    Returns:
        `(student_chunk int32 [Ts], teacher_chunk int32 [Tt], supervised bool [C], anchor bool [C],
        aligned_bytes)`: the chunk of every token, -1 for none; which chunks are taught, among
        which none holds the first token of a side; which are anchors; how many bytes the student
        spells in supervised chunks.
    """
    compiled = _compiled()
    run = compiled.row_chunks if compiled else row_chunks_numpy
    return run(student_ends, n_student, teacher_ends, n_teacher, stretches)


def chunk_ids_numpy(
    student_start: np.ndarray,
    student_end: np.ndarray,
    teacher_start: np.ndarray,
    teacher_end: np.ndarray,
) -> Chunked:
    """`chunk_ids` without numba: O(T log T), no loop over tokens."""
    student, teacher = (
        (start[solid], end[solid])
        for start, end in ((student_start, student_end), (teacher_start, teacher_end))
        for solid in [(start >= 0) & (end > start)]
    )
    shared = np.intersect1d(np.concatenate(student), np.concatenate(teacher))
    lengths = np.diff(shared)
    whole = (np.diff(_covered(student, shared)) == lengths) & (
        np.diff(_covered(teacher, shared)) == lengths
    )
    chunk_start, chunk_end = shared[:-1][whole], shared[1:][whole]
    student_chunk = _label(student_start, student_end, chunk_start, chunk_end)
    teacher_chunk = _label(teacher_start, teacher_end, chunk_start, chunk_end)
    return student_chunk, teacher_chunk, len(chunk_start)


def tiled_chunk_ids_numpy(
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
    student_prefix: int,
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
    teacher_prefix: int,
) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    """`tiled_chunk_ids` without numba."""
    lines, totals = [], []
    for ids, lengths, prefix in (
        (student_ids, student_lengths, student_prefix),
        (teacher_ids, teacher_lengths, teacher_prefix),
    ):
        ends = np.cumsum(np.append(-prefix, lengths[ids]), dtype=np.int64)
        totals.append(int(ends[-1]))
        edges = np.maximum(ends, 0)
        lines += [edges[:-1], edges[1:]]
    return *chunk_ids_numpy(*lines), totals[0], totals[1]


def row_chunks_numpy(
    student_ends: np.ndarray,
    n_student: int,
    teacher_ends: np.ndarray,
    n_teacher: int,
    stretches: np.ndarray,
) -> RowChunks:
    """`row_chunks` without numba: every stretch behind the one before it, on one line."""
    edges = [np.append(0, ends) for ends in (student_ends, teacher_ends)]
    lines = [np.full((2, size), -1, np.int64) for size in (n_student, n_teacher)]
    stretch_of = np.full(n_student, -1, np.int64)
    top = 0
    for k, row in enumerate(stretches.tolist()):
        base = top + _GAP
        stretch_of[row[0] : row[1]] = k
        places = zip(lines, edges, (row[:4], row[4:8]), strict=True)
        for line, ends, (first, stop, at, origin) in places:
            own = ends[at : at + stop - first + 1] - origin
            if row[8]:
                own = np.arange(stop - first + 1) // max(stop - first, 1)  # all but the last at 0
            line[:, first:stop] = base + own[:-1], base + own[1:]
            top = max(top, base + int(own[-1]))
    student_chunk, teacher_chunk, n = chunk_ids_numpy(*lines[0], *lines[1])
    of = np.empty(n, np.int64)
    of[student_chunk[student_chunk >= 0]] = stretch_of[student_chunk >= 0]
    anchor, supervised = stretches[of, 8] > 0, stretches[of, 9] > 0
    for chunk in (student_chunk, teacher_chunk):
        if len(chunk) and chunk[0] >= 0:
            supervised[chunk[0]] = False
    counted = np.append(supervised, False)[student_chunk]
    aligned = int(np.diff(edges[0][: n_student + 1])[counted].sum())
    return student_chunk, teacher_chunk, supervised, anchor, aligned


def _covered(side: tuple[np.ndarray, np.ndarray], points: np.ndarray) -> np.ndarray:
    """How much of the line before each point the side's tokens cover; points are token edges."""
    start, end = side
    total = np.concatenate([[0], np.cumsum(end - start)])
    return total[np.searchsorted(end, points, side="right")]


def _label(
    start: np.ndarray, end: np.ndarray, chunk_start: np.ndarray, chunk_end: np.ndarray
) -> np.ndarray:
    """The chunk of every token, -1 for tokens of none."""
    n = len(chunk_start)
    out = np.full(len(start), -1, np.int32)
    if n == 0:
        return out
    k = np.searchsorted(chunk_end, start, side="right")
    here = np.minimum(k, n - 1)
    inside = (k < n) & (start >= chunk_start[here]) & (end <= chunk_end[here]) & (start >= 0)
    before = np.maximum(k - 1, 0)
    trailing = ~inside & (start == end) & (k > 0) & (chunk_end[before] == start) & (start >= 0)
    out[inside] = k[inside]
    out[trailing] = before[trailing]
    return out
