"""The loops of `candidates`, compiled with numba. Imported on first use, as numba is slow to load.

The edit distance is Myers' bit-parallel one (Hyyrö 2003) for strings of up to 64 symbols, a plain
table beyond. Two bounds below it are tried first: the difference of the lengths, and the number of
mask bits that one token has and the other has not, each of which stands for a symbol that must go.
Nothing that could be a pair is left out by them.
"""

import numpy as np

from crosstill.kernels.jit import jit

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_FULL = np.uint64(0xFFFFFFFFFFFFFFFF)
_ODD = np.uint64(0x5555555555555555)
_PAIRS = np.uint64(0x3333333333333333)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_BYTES = np.uint64(0x0101010101010101)


@jit
def by_strings(student_top, teacher_top, to_student, to_teacher, strings, symbols, theta, out):
    """Maps every group by edit distance; see `candidates.CandidateMap`."""
    seen = np.full(to_student.shape[0], -1, np.int64)
    bits = np.zeros(symbols, np.uint64)
    room = student_top.shape[1] * teacher_top.shape[1]
    near = np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64)
    for g in range(student_top.shape[0]):
        free_student, free_teacher = _exact(
            g, student_top[g], teacher_top[g], to_student, to_teacher, seen, out
        )
        n = _near_strings(
            student_top[g], free_student, teacher_top[g], free_teacher, strings, bits, theta, near
        )
        _take(g, student_top[g], teacher_top[g], n, near, out)


@jit
def by_distances(student_top, teacher_top, to_student, to_teacher, barred, distance, theta, out):
    """Maps every group by distances [G, Ks, Kt] that are given."""
    seen = np.full(to_student.shape[0], -1, np.int64)
    room = student_top.shape[1] * teacher_top.shape[1]
    near = np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64)
    for g in range(student_top.shape[0]):
        free_student, free_teacher = _exact(
            g, student_top[g], teacher_top[g], to_student, to_teacher, seen, out
        )
        n = 0
        for a in free_student:
            if barred[0][student_top[g, a]]:
                continue
            for b in free_teacher:
                if distance[g, a, b] < theta and not barred[1][teacher_top[g, b]]:
                    near[0][n], near[1][n], near[2][n] = distance[g, a, b], a, b
                    n += 1
        _take(g, student_top[g], teacher_top[g], n, near, out)


@jit
def _exact(g, student_top, teacher_top, to_student, to_teacher, seen, out):
    """Writes the exact pairs of a group; returns the ranks on both sides that have none."""
    student_ids, teacher_ids, count, covered = out
    free_student = np.empty(student_top.shape[0], np.int64)
    free_teacher = np.empty(teacher_top.shape[0], np.int64)
    n, left, right = 0, 0, 0
    for b in range(teacher_top.shape[0]):
        id = teacher_top[b]
        seen[id] = g
        if to_student[id] >= 0:
            student_ids[g, n], teacher_ids[g, n] = to_student[id], id
            n += 1
        else:
            free_teacher[right] = b
            right += 1
    for a in range(student_top.shape[0]):
        id = student_top[a]
        other = to_teacher[id]
        if other < 0:
            free_student[left] = a
            left += 1
        elif seen[other] != g:
            student_ids[g, n], teacher_ids[g, n] = id, other
            n += 1
    count[g] = n
    covered[g, 0] = student_top.shape[0] - left
    covered[g, 1] = teacher_top.shape[0] - right
    return free_student[:left], free_teacher[:right]


@jit
def _take(g, student_top, teacher_top, found, near, out):
    """Takes the near pairs one-to-one, nearest first; ties by the student's rank, the teacher's."""
    if found == 0:
        return
    student_ids, teacher_ids, count, covered = out
    used_student = np.zeros(student_top.shape[0], np.bool_)
    used_teacher = np.zeros(teacher_top.shape[0], np.bool_)
    # They were found in the order of the ranks, and this order is kept among equals.
    for k in np.argsort(near[0][:found], kind="mergesort"):
        a, b = near[1][k], near[2][k]
        if used_student[a] or used_teacher[b]:
            continue
        used_student[a] = used_teacher[b] = True
        n = count[g]
        student_ids[g, n], teacher_ids[g, n] = student_top[a], teacher_top[b]
        count[g] = n + 1
        covered[g, 0] += 1
        covered[g, 1] += 1


@jit
def _near_strings(student_top, free_student, teacher_top, free_teacher, strings, bits, theta, near):
    """Lists the pairs under theta in the order of the ranks; returns how many."""
    symbols, starts, masks, others, other_starts, other_masks = strings
    count = free_teacher.shape[0]
    first, size = np.empty(count, np.int64), np.empty(count, np.int64)
    mask = np.empty(count, np.uint64)
    for k in range(count):
        id = teacher_top[free_teacher[k]]
        first[k], size[k] = other_starts[id], other_starts[id + 1] - other_starts[id]
        mask[k] = other_masks[id]
    n = 0
    for a in free_student:
        id = student_top[a]
        pattern = symbols[starts[id] : starts[id + 1]]
        width, own = pattern.shape[0], masks[id]
        if width == 0:
            continue
        if width <= 64:
            for i in range(width):
                bits[pattern[i]] |= _ONE << np.uint64(i)
        for k in range(count):
            if size[k] == 0:
                continue
            total = width + size[k]
            if abs(width - size[k]) / total >= theta:
                continue
            if _ones(own & ~mask[k]) / total >= theta or _ones(mask[k] & ~own) / total >= theta:
                continue
            text = others[first[k] : first[k] + size[k]]
            distance = _myers(width, bits, text) if width <= 64 else _table(pattern, text)
            if distance / total < theta:
                near[0][n], near[1][n], near[2][n] = distance / total, a, free_teacher[k]
                n += 1
        for i in range(width):
            bits[pattern[i]] = _ZERO
    return n


@jit
def _ones(word):
    """How many bits are set."""
    word = word - ((word >> _ONE) & _ODD)
    word = (word & _PAIRS) + ((word >> np.uint64(2)) & _PAIRS)
    word = (word + (word >> np.uint64(4))) & _NIBBLES
    return np.int64((word * _BYTES) >> np.uint64(56))


@jit
def _myers(width, bits, text):
    """The edit distance of a pattern of `width` symbols, whose places are in `bits`."""
    up, down = _FULL, _ZERO
    last = _ONE << np.uint64(width - 1)
    score = width
    for i in range(text.shape[0]):
        equal = bits[text[i]]
        vertical = equal | down
        horizontal = (((equal & up) + up) ^ up) | equal
        more = down | ~(horizontal | up)
        less = up & horizontal
        if more & last:
            score += 1
        if less & last:
            score -= 1
        more = (more << _ONE) | _ONE
        up = (less << _ONE) | ~(vertical | more)
        down = more & vertical
    return score


@jit
def _table(pattern, text):
    """The edit distance by the textbook's table, one row at a time."""
    row = np.arange(text.shape[0] + 1)
    for i in range(pattern.shape[0]):
        diagonal, row[0] = row[0], i + 1
        for j in range(text.shape[0]):
            replaced = diagonal + (pattern[i] != text[j])
            diagonal = row[j + 1]
            row[j + 1] = min(replaced, min(row[j], diagonal) + 1)
    return row[text.shape[0]]
