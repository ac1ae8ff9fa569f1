"""The loops of `kernel`, compiled with numba. Imported on first use, because numba is slow to load.

The meaning of every array is told in `kernel`; the numpy functions there compute the same.
"""

from functools import partial

import numpy as np

from crosstill.kernels.jit import jit


@jit
def _skip(at, start, end):
    """The next token at or after `at` that covers something."""
    while at < start.shape[0] and (start[at] < 0 or start[at] >= end[at]):
        at += 1
    return at


@jit
def _stretches(student_start, student_end, teacher_start, teacher_end, chunk_start, chunk_end):
    """Writes the stretch of every chunk by two pointers; returns how many there are."""
    n = 0
    i = _skip(0, student_start, student_end)
    j = _skip(0, teacher_start, teacher_end)
    while i < student_start.shape[0] and j < teacher_start.shape[0]:
        start = student_start[i]
        if start < teacher_start[j]:
            i = _skip(i + 1, student_start, student_end)
            continue
        if start > teacher_start[j]:
            j = _skip(j + 1, teacher_start, teacher_end)
            continue
        student_at, teacher_at = student_end[i], teacher_end[j]
        i = _skip(i + 1, student_start, student_end)
        j = _skip(j + 1, teacher_start, teacher_end)
        # Grow the side that ends earlier. If it has a gap there, no point up to the other side's
        # end can start a chunk either, so nothing is lost by going on behind it.
        while student_at != teacher_at:
            if student_at < teacher_at:
                if i == student_start.shape[0] or student_start[i] != student_at:
                    break
                student_at = student_end[i]
                i = _skip(i + 1, student_start, student_end)
            else:
                if j == teacher_start.shape[0] or teacher_start[j] != teacher_at:
                    break
                teacher_at = teacher_end[j]
                j = _skip(j + 1, teacher_start, teacher_end)
        if student_at == teacher_at:
            chunk_start[n], chunk_end[n] = start, student_at
            n += 1
    return n


@jit
def _label(start, end, chunk_start, chunk_end, n):
    """The chunk of every token, -1 for tokens of none."""
    out = np.full(start.shape[0], -1, np.int32)
    k = 0
    for i in range(start.shape[0]):
        if start[i] < 0:
            continue
        while k < n and chunk_end[k] <= start[i]:
            k += 1
        if k < n and chunk_start[k] <= start[i] and end[i] <= chunk_end[k]:
            out[i] = k
        elif start[i] == end[i] and k > 0 and chunk_end[k - 1] == start[i]:
            out[i] = k - 1
    return out


@jit
def chunk_ids(student_start, student_end, teacher_start, teacher_end):
    """See `kernel.chunk_ids`."""
    room = min(student_start.shape[0], teacher_start.shape[0])
    chunk_start, chunk_end = np.empty(room, np.int64), np.empty(room, np.int64)
    n = _stretches(student_start, student_end, teacher_start, teacher_end, chunk_start, chunk_end)
    student_chunk = _label(student_start, student_end, chunk_start, chunk_end, n)
    teacher_chunk = _label(teacher_start, teacher_end, chunk_start, chunk_end, n)
    return student_chunk, teacher_chunk, n


@partial(jit, boundscheck=True)  # costs nothing here, and a foreign id reads no foreign memory
def _edges(ids, lengths, prefix):
    """Edges of tokens behind a prefix, where none lies before the text; and where they end."""
    edges = np.empty(ids.shape[0] + 1, np.int64)
    edges[0] = 0
    at = -prefix
    for i in range(ids.shape[0]):
        at += lengths[ids[i]]
        edges[i + 1] = max(at, 0)
    return edges, at


@jit
def _walk(student, teacher, shift, student_chunk, teacher_chunk, n):
    """Labels the tokens between the edges of both sides, from chunk n on; returns the next one.

    The teacher's edge e lies where the student's `e + shift` does.
    """
    i, j = 0, 0
    student_at, teacher_at = student[0], teacher[0] + shift
    while student_at != teacher_at and i < len(student_chunk) and j < len(teacher_chunk):
        if student_at < teacher_at:
            i += 1
            student_at = student[i]
        else:
            j += 1
            teacher_at = teacher[j] + shift
    student_chunk[:i], teacher_chunk[:j] = -1, -1
    before, last, i_last, j_last = n, student_at, i, j  # the last shared edge, if there is one
    shared = student_at == teacher_at
    while shared and i < len(student_chunk) and j < len(teacher_chunk):
        student_chunk[i], teacher_chunk[j] = n, n
        i, j = i + 1, j + 1
        student_at, teacher_at = student[i], teacher[j] + shift
        while student_at != teacher_at:  # the side that is behind goes on
            if student_at < teacher_at:
                if i == len(student_chunk):
                    break
                student_chunk[i] = n
                i += 1
                student_at = student[i]
            else:
                if j == len(teacher_chunk):
                    break
                teacher_chunk[j] = n
                j += 1
                teacher_at = teacher[j] + shift
        if student_at == teacher_at and student_at > last:
            n += 1
            last, i_last, j_last = student_at, i, j
    # Behind the last shared edge, only what spells nothing right there is in a chunk.
    for i in range(i_last, len(student_chunk)):
        student_chunk[i] = n - 1 if n > before and student[i + 1] == last else -1
    for j in range(j_last, len(teacher_chunk)):
        teacher_chunk[j] = n - 1 if n > before and teacher[j + 1] + shift == last else -1
    return n


@jit
def _from_zero(ends):
    """The edges of tokens that end there, the first of which starts at 0."""
    edges = np.empty(len(ends) + 1, np.int64)
    edges[0] = 0
    edges[1:] = ends
    return edges


@jit
def _range(stretches, k, first, size):
    """The tokens of a side in a stretch; what the next stretch has too is the next one's."""
    stop = min(stretches[k, first + 1], size)
    if k + 1 < len(stretches):
        stop = min(stop, stretches[k + 1, first])
    return stretches[k, first], max(stop, stretches[k, first])


@jit
def row_chunks(student_ends, n_student, teacher_ends, n_teacher, stretches):
    """See `kernel.row_chunks`."""
    student_edges, teacher_edges = _from_zero(student_ends), _from_zero(teacher_ends)
    student_chunk = np.full(n_student, -1, np.int32)
    teacher_chunk = np.full(n_teacher, -1, np.int32)
    behind = np.empty(len(stretches), np.int64)  # the number behind each stretch's chunks
    n = 0
    for k in range(len(stretches)):
        i, i_stop = _range(stretches, k, 0, n_student)
        j, j_stop = _range(stretches, k, 4, n_teacher)
        own, other = student_chunk[i:i_stop], teacher_chunk[j:j_stop]
        if not stretches[k, 8]:
            at, teacher_at = stretches[k, 2], stretches[k, 6]
            student = student_edges[at : at + len(own) + 1]
            teacher = teacher_edges[teacher_at : teacher_at + len(other) + 1]
            n = _walk(student, teacher, stretches[k, 3] - stretches[k, 7], own, other, n)
        elif len(own) and len(other):
            own[:], other[:] = n, n
            n += 1
        behind[k] = n
    supervised, anchor = np.empty(n, np.bool_), np.empty(n, np.bool_)
    n = 0
    for k in range(len(stretches)):
        anchor[n : behind[k]], supervised[n : behind[k]] = stretches[k, 8], stretches[k, 9]
        n = behind[k]
    for chunk in (student_chunk, teacher_chunk):
        if len(chunk) and chunk[0] >= 0:
            supervised[chunk[0]] = False
    aligned = 0
    for i in range(n_student):
        if student_chunk[i] >= 0 and supervised[student_chunk[i]]:
            aligned += student_edges[i + 1] - student_edges[i]
    return student_chunk, teacher_chunk, supervised, anchor, aligned


@jit
def tiled_chunk_ids(
    student_ids, student_lengths, student_prefix, teacher_ids, teacher_lengths, teacher_prefix
):
    """See `kernel.tiled_chunk_ids`."""
    student, student_bytes = _edges(student_ids, student_lengths, student_prefix)
    teacher, teacher_bytes = _edges(teacher_ids, teacher_lengths, teacher_prefix)
    student_chunk = np.empty(len(student_ids), np.int32)
    teacher_chunk = np.empty(len(teacher_ids), np.int32)
    n = _walk(student, teacher, 0, student_chunk, teacher_chunk, 0)
    return student_chunk, teacher_chunk, n, student_bytes, teacher_bytes
