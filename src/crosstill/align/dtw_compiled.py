"""The loops of `dtw`, compiled with numba. Imported on first use, because numba is slow to load.

Along a row each sum waits for the one before it; along an antidiagonal none waits for another, and
the processor takes several at a time. The table is cut into strips of `_ROWS` rows, whose three
antidiagonals of sums fit into the nearest cache.
"""

import numpy as np

from crosstill.kernels.jit import jit

_ROWS = 128


@jit
def path(unique, teacher, student, teacher_weight, student_weight, low, high):
    """The cheapest path within the windows: (teacher int64 [L], student int64 [L], cost).

    Neither end of the windows ever goes back, and none of them is empty.
    """
    moves, offset, cost = _moves(
        unique, teacher, student, teacher_weight, student_weight, low, high
    )
    rows, columns = teacher.shape[0], student.shape[0]
    on_teacher = np.empty(rows + columns, np.int64)
    on_student = np.empty(rows + columns, np.int64)
    at, i, j = rows + columns, rows - 1, columns - 1
    while True:
        at -= 1
        on_teacher[at], on_student[at] = i, j
        if i == 0 and j == 0:
            break
        first = i // _ROWS * _ROWS
        row = i - first
        move = moves[offset[i // _ROWS] + (row + j - low[first]) * _ROWS + row]
        i -= move != 2
        j -= move != 1
    return on_teacher[at:], on_student[at:], cost


@jit
def _moves(unique, teacher, student, teacher_weight, student_weight, low, high):
    """How each pair is best reached: 0 from both sides' tokens before, 1 teacher's, 2 student's."""
    rows, columns = teacher.shape[0], student.shape[0]
    offset = _offsets(low, high)
    moves = np.empty(offset[-1], np.uint8)
    flat = unique.reshape(-1)
    start = (teacher * unique.shape[1]).astype(np.uint64)
    # Along an antidiagonal the student's tokens go backwards: reversed, they go on with the rows.
    kinds, weights = student[::-1].astype(np.uint32), student_weight[::-1].copy()
    near, sums = np.empty(_ROWS, unique.dtype), np.empty(3 * (_ROWS + 1))
    above = np.full(columns + 1, np.inf)  # above[j + 1]: the cheapest way to (row before, j)
    above[0] = 0.0
    for strip in range(offset.shape[0] - 1):
        i, end = strip * _ROWS, min((strip + 1) * _ROWS, rows)
        below = np.full(columns + 1, np.inf)
        _strip(
            flat,
            (start[i:end], teacher_weight[i:end], low[i:end], high[i:end]),
            (kinds, weights),
            (above, below),
            (near, sums),
            moves[offset[strip] : offset[strip + 1]],
        )
        above = below
    return moves, offset, above[columns]


@jit
def _offsets(low, high):
    """int64 [strips + 1]: where the moves of each strip begin, `_ROWS` for each antidiagonal."""
    rows = low.shape[0]
    offset = np.zeros((rows + _ROWS - 1) // _ROWS + 1, np.int64)
    for strip in range(offset.shape[0] - 1):
        first, last = strip * _ROWS, min((strip + 1) * _ROWS, rows) - 1
        diagonals = high[last] - low[first] + last - first
        offset[strip + 1] = offset[strip] + diagonals * _ROWS
    return offset


@jit
def _strip(flat, teacher, student, around, room, moves):
    """Goes through a strip by antidiagonals, each of the pairs whose ranks add up to `d`.

    The two loops over pairs have unsigned offsets, as the compiler would look whether a signed one
    is negative; and they are two, as of one that looks up values it makes none that takes several
    pairs at a time.
    """
    start, weight, low, high = teacher
    (kinds, weights), (above, below), (near, sums) = student, around, room
    count, columns, first = low.shape[0], kinds.shape[0], low[0]
    # Slot 0 of an antidiagonal is the row above the strip; what is not allowed is infinite.
    sums[:] = np.inf
    one, two, new = 0, _ROWS + 1, 2 * (_ROWS + 1)
    sums[one], sums[two] = above[first + 1], above[first]
    begin, end = 0, 0
    gone = (0, 0, 0)  # `begin` of the last three antidiagonals
    for d in range(first, high[count - 1] + count - 1):
        while end < count and low[end] + end <= d:
            end += 1
        while begin < end and high[begin] + begin <= d:
            begin += 1
        row, column = np.uint64(begin), np.uint64(columns - 1 - d + begin)
        for k in range(end - begin):
            near[k] = flat[start[row + np.uint64(k)] + kinds[column + np.uint64(k)]]
        to, at = np.uint64(new + begin + 1), np.uint64((d - first) * _ROWS + begin)
        up, across = np.uint64(one + begin), np.uint64(two + begin)
        for k in range(np.uint64(end - begin)):
            diagonal, before, left = sums[across + k], sums[up + k], sums[up + k + np.uint64(1)]
            best = min(before, diagonal)
            moves[at + k] = np.uint8(2) if left < best else np.uint8(before < diagonal)
            cost = near[k] * weight[row + k] * weights[column + k]
            sums[to + k] = min(left, best) + cost
        sums[new] = above[d + 2] if d + 2 <= columns else np.inf
        for k in range(gone[0], begin):  # the three antidiagonals still hold their last sums
            sums[new + k + 1] = np.inf
        gone = (gone[1], gone[2], begin)
        if end == count and begin < count:
            below[d - count + 2] = sums[new + count]
        one, two, new = new, one, two
