"""The loops of `dtw`, compiled with numba. Imported on first use, because numba is slow to load."""

import numpy as np

from crosstill.kernels.jit import jit


@jit
def path(unique, teacher, student, teacher_weight, student_weight, low, high):
    """The cheapest path within the windows: (teacher int64 [L], student int64 [L], cost)."""
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
        move = moves[offset[i] + j - low[i]]
        i -= move != 2
        j -= move != 1
    return on_teacher[at:], on_student[at:], cost


@jit
def _moves(unique, teacher, student, teacher_weight, student_weight, low, high):
    """How each pair is best reached: 0 from both sides' tokens before, 1 teacher's, 2 student's."""
    rows, columns = teacher.shape[0], student.shape[0]
    offset = np.empty(rows + 1, np.int64)
    offset[0] = 0
    for i in range(rows):
        offset[i + 1] = offset[i] + high[i] - low[i]
    moves = np.empty(offset[rows], np.uint8)
    total = np.full(columns + 1, np.inf)  # total[j + 1]: the cheapest way to (row before, j)
    total[0] = 0.0
    first, second = np.empty(columns), np.empty(columns)
    i = 0
    while i < rows:
        start, stop = low[i], high[i]
        # What stands before the window of the row before is of a row still earlier.
        diagonal = np.inf if i > 0 and start == low[i - 1] else total[start]
        two = i + 1 < rows and low[i + 1] == start and high[i + 1] == stop
        row, weight = unique[teacher[i]], teacher_weight[i]
        low_row, low_weight = unique[teacher[i + two]], teacher_weight[i + two]
        # Slices and ranges from 0: no index can be negative, which the compiler would look at.
        kinds, weights = student[start:stop], student_weight[start:stop]
        for k in range(stop - start):
            first[k] = row[kinds[k]] * weight * weights[k]
            second[k] = low_row[kinds[k]] * low_weight * weights[k]
        out, reach = moves[offset[i] : offset[i + 1 + two]], total[start : stop + 1]
        if two:
            _two_rows(reach, first, second, diagonal, stop - start, out)
        else:
            _one_row(reach, first, diagonal, stop - start, out)
        i += 1 + two
    return moves, offset, total[columns]


@jit
def _one_row(total, cost, diagonal, count, moves):
    """Goes from the row before, `total[1:]`, to this one; writes its moves."""
    left = np.inf
    for k in range(count):
        above = total[k + 1]
        move = np.uint8(above < diagonal)
        best = min(above, diagonal)
        moves[k] = np.uint8(2) if left < best else move
        left = min(left, best) + cost[k]
        diagonal = above
        total[k + 1] = left


@jit
def _two_rows(total, first, second, diagonal, count, moves):
    """As `_one_row` twice, the second row one column behind.

    Along a row each sum waits for the one before it; two rows at a time wait together.
    """
    below = moves[count:]
    above = total[1]
    moves[0] = np.uint8(above < diagonal)
    left = min(above, diagonal) + first[0]
    diagonal, low_left, low_diagonal = above, np.inf, np.inf
    for k in range(1, count):
        above = total[k + 1]
        move = np.uint8(above < diagonal)
        best = min(above, diagonal)
        moves[k] = np.uint8(2) if left < best else move
        here = min(left, best) + first[k]
        move = np.uint8(left < low_diagonal)
        best = min(left, low_diagonal)
        below[k - 1] = np.uint8(2) if low_left < best else move
        low_left = min(low_left, best) + second[k - 1]
        total[k] = low_left
        low_diagonal, diagonal, left = left, above, here
    move = np.uint8(left < low_diagonal)
    best = min(left, low_diagonal)
    below[count - 1] = np.uint8(2) if low_left < best else move
    total[count] = min(low_left, best) + second[count - 1]
