"""The loops of `dtw`, compiled with numba. Imported on first use, because numba is slow to load."""

import numpy as np

from crosstill.align.compiled import jit


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
    for i in range(rows):
        first, count = low[i], high[i] - low[i]
        # What stands before the window of the row before is of a row still earlier.
        diagonal = np.inf if i > 0 and first == low[i - 1] else total[first]
        left = np.inf
        row = unique[teacher[i]]
        weight = teacher_weight[i]
        out = moves[offset[i] : offset[i + 1]]
        for k in range(count):
            j = first + k
            above = total[j + 1]
            move = np.uint8(above < diagonal)
            best = min(above, diagonal)
            move = np.uint8(2) if left < best else move
            best = min(left, best)
            left = best + row[student[j]] * weight * student_weight[j]
            diagonal = above
            total[j + 1] = left
            out[k] = move
    return moves, offset, total[columns]
