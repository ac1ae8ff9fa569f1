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
def by_strings(student_top, teacher_top, to_student, to_teacher, strings, symbols, limit, out):
    """Maps every group by edit distance; see `candidates.CandidateMap`. Returns the most pairs."""
    listed, free, near = _scratch(student_top, teacher_top, to_teacher)
    bits = np.zeros(symbols, np.uint64)
    held = np.empty((4, teacher_top.shape[1]), np.int64), np.empty(teacher_top.shape[1], np.uint64)
    for g in range(student_top.shape[0]):
        own, other = student_top[g], teacher_top[g]
        left, right = _exact(g, own, other, to_student, to_teacher, listed, free, out)
        if left > 0 and right > 0:
            n = _near_strings(
                own, free[0][:left], other, free[1][:right], strings, bits, limit, held, near
            )
            _take(g, own, other, n, near, out)
    return _filled(out)


@jit
def by_distances(student_top, teacher_top, to_student, to_teacher, barred, distance, theta, out):
    """Maps every group by distances [G, Ks, Kt] that are given. Returns the most pairs."""
    listed, free, near = _scratch(student_top, teacher_top, to_teacher)
    for g in range(student_top.shape[0]):
        own, other = student_top[g], teacher_top[g]
        left, right = _exact(g, own, other, to_student, to_teacher, listed, free, out)
        n = 0
        for a in free[0][:left]:
            if barred[0][own[a]]:
                continue
            for b in free[1][:right]:
                if distance[g, a, b] < theta and not barred[1][other[b]]:
                    near[0][n], near[1][n], near[2][n] = distance[g, a, b], a, b
                    n += 1
        _take(g, own, other, n, near, out)
    return _filled(out)


@jit
def _scratch(student_top, teacher_top, to_teacher):
    """Room that the groups use one after the other: a group's work is too little to make it."""
    own, other = student_top.shape[1], teacher_top.shape[1]
    listed = np.zeros(to_teacher.shape[0], np.bool_)
    near = np.empty(own * other), np.empty(own * other, np.int64), np.empty(own * other, np.int64)
    return listed, (np.empty(own, np.int64), np.empty(other, np.int64)), near


@jit
def _exact(g, student_top, teacher_top, to_student, to_teacher, listed, free, out):
    """Writes the exact pairs of a group and the ranks without one; returns how many these are.

    Each item is written and then counted or not: whether it has a partner cannot be foretold, and
    a wrong guess of the processor costs more than the write. Unsigned, as no index is negative.
    """
    student_ids, teacher_ids = out[0][g], out[1][g]
    free_student, free_teacher = free
    n, left, right = _ZERO, _ZERO, _ZERO
    for b in range(teacher_top.shape[0]):
        id = teacher_top[b]
        partner = to_student[np.uint64(id)]
        student_ids[n], teacher_ids[n], free_teacher[right] = partner, id, b
        n += np.uint64(partner >= 0)
        right += np.uint64(partner < 0)
    found = n
    for k in range(found):
        listed[np.uint64(student_ids[k])] = True
    for a in range(student_top.shape[0]):
        id = student_top[a]
        partner = to_teacher[np.uint64(id)]
        student_ids[n], teacher_ids[n], free_student[left] = id, partner, a
        n += np.uint64(partner >= 0 and not listed[np.uint64(id)])
        left += np.uint64(partner < 0)
    for k in range(found):
        listed[np.uint64(student_ids[k])] = False
    out[2][g] = n
    out[3][g, 0] = student_top.shape[0] - np.int64(left)
    out[3][g, 1] = teacher_top.shape[0] - np.int64(right)
    return np.int64(left), np.int64(right)


@jit
def _filled(out):
    """Writes 0 behind the pairs of every group, as far as the most pairs of one, and returns it."""
    student_ids, teacher_ids, count, _ = out
    most = 0
    for g in range(count.shape[0]):
        most = max(most, count[g])
    for g in range(count.shape[0]):
        student_ids[g, count[g] : most] = 0
        teacher_ids[g, count[g] : most] = 0
    return most


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
def _near_strings(student_top, own, teacher_top, other, strings, bits, limit, held, near):
    """Lists the pairs of free ranks in the order of the ranks; returns how many.

    `limit` [length + length] is the largest distance that makes a pair.
    """
    symbols, starts, masks, others, _, _ = strings
    (rank, first, size, kept), other_mask = held
    count = _hold(teacher_top, other, strings, held)
    n = 0
    for a in own:
        id = student_top[a]
        pattern, mask = symbols[starts[id] : starts[id + 1]], masks[id]
        width = pattern.shape[0]
        if width == 0:
            continue
        some = _ZERO
        for k in range(count):
            kept[some] = k
            bound = max(_ones(mask & ~other_mask[k]), _ones(other_mask[k] & ~mask))
            some += np.uint64(max(bound, abs(width - size[k])) <= limit[width + size[k]])
        if some == 0:
            continue
        if width <= 64:
            for i in range(width):
                bits[pattern[i]] |= _ONE << np.uint64(i)
        for k in kept[:some]:
            text = others[first[k] : first[k] + size[k]]
            distance = _myers(width, bits, text) if width <= 64 else _table(pattern, text)
            if distance <= limit[width + size[k]]:
                near[0][n], near[1][n], near[2][n] = distance / (width + size[k]), a, rank[k]
                n += 1
        for i in range(width):
            bits[pattern[i]] = _ZERO
    return n


@jit
def _hold(teacher_top, other, strings, held):
    """Lays out what is asked of the free teacher tokens that spell something; returns how many."""
    _, _, _, _, starts, masks = strings
    (rank, first, size, _), mask = held
    count = 0
    for b in other:
        id = teacher_top[b]
        if starts[id] < starts[id + 1]:
            rank[count], mask[count] = b, masks[id]
            first[count], size[count] = starts[id], starts[id + 1] - starts[id]
            count += 1
    return count


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
