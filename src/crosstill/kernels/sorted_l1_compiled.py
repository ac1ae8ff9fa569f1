"""The loops of `sorted_l1`, compiled with numba. Imported on first use: numba is slow to load."""

import numpy as np

from crosstill.kernels.jit import jit

SHIFT = 13
"""Bits of a float32 below those that choose the bucket: 1,024 buckets for each power of two."""

BUCKETS = (0x3F800000 >> SHIFT) + 2
"""Buckets up to that of 1.0 and one more, for a rounding error above it."""

MIXED = 2
"""In place of a sign: the bucket has to be sorted."""


@jit
def _bucket(bits):
    """The bucket of a value; the last one also takes what is no probability (a NaN)."""
    return min(np.int64(bits >> np.uint32(SHIFT)), BUCKETS - 1)


@jit
def _count(bits, table):
    """Counts the entries of every bucket; returns the lowest and the highest bucket in use."""
    low, high = BUCKETS, 0
    for i in range(bits.shape[0]):
        bucket = _bucket(bits[i])
        table[bucket] += 1
        low, high = min(low, bucket), max(high, bucket)
    return low, high


@jit
def _judge(student, teacher, sign, start, low, high):
    """Gives every bucket a sign; returns how many entries of both sides have to be sorted.

    `start[0]` and `start[1]` become the places where a mixed bucket's entries are gathered,
    `start[2]` how many more entries the student has above the bucket than the teacher.
    """
    lead, mixed_s, mixed_t = 0, 0, 0
    for bucket in range(high, low - 1, -1):
        s, t = student[bucket], teacher[bucket]
        if lead - t >= 0:
            sign[bucket] = 1
        elif lead + s <= 0:
            sign[bucket] = -1
        else:
            sign[bucket] = MIXED
            start[0, bucket], start[1, bucket], start[2, bucket] = mixed_s, mixed_t, lead
            mixed_s += s
            mixed_t += t
        lead += s - t
    return mixed_s + mixed_t


@jit
def _settle(values, bits, sign, start, mixed, slope):
    """Sums the entries with their bucket's sign and gathers those of mixed buckets.

    The slope is written where there is room for one: the teacher's side has none.
    """
    total = 0.0
    for i in range(bits.shape[0]):
        bucket = _bucket(bits[i])
        direction = sign[bucket]
        if direction == MIXED:
            # The value above the place: sorting these numbers sorts the values.
            mixed[start[bucket]] = (np.uint64(bits[i]) << np.uint64(32)) | np.uint64(i)
            start[bucket] += 1
        else:
            total += direction * np.float64(values[i])
            if slope.shape[0] > 0:
                slope[i] = direction
    return total


@jit
def _sort(part):
    """Sorts in place: by insertion where that is faster."""
    if part.shape[0] > 48:
        part.sort()
        return
    for i in range(1, part.shape[0]):
        value = part[i]
        j = i
        while j > 0 and part[j - 1] > value:
            part[j] = part[j - 1]
            j -= 1
        part[j] = value


@jit
def _direction(value, others, rank):
    """The sign of a value minus the entry at a rank of the other side's bucket.

    `others` is sorted in ascending order and `rank` counts from its largest; a negative rank lies
    above the bucket, one beyond it below.
    """
    if rank < 0:
        return -1
    if rank >= others.shape[0]:
        return 1
    other = others[others.shape[0] - 1 - rank] >> np.uint64(32)
    return np.int64(value > other) - np.int64(value < other)


@jit
def _compare(mixed_s, mixed_t, lead, student, teacher, slope):
    """Pairs one bucket's entries by rank and writes their slopes; returns their share of the sum.

    Both are sorted in ascending order; `lead` is how many more entries the student has above.
    """
    total = 0.0
    first = 0
    while first < mixed_s.shape[0]:
        value = mixed_s[mixed_s.shape[0] - 1 - first] >> np.uint64(32)
        after, signs = first, 0
        while (
            after < mixed_s.shape[0]
            and mixed_s[mixed_s.shape[0] - 1 - after] >> np.uint64(32) == value
        ):
            signs += _direction(value, mixed_t, after + lead)
            after += 1
        for k in range(first, after):
            place = mixed_s[mixed_s.shape[0] - 1 - k] & np.uint64(0xFFFFFFFF)
            slope[place] = signs / (after - first)
            total += signs / (after - first) * np.float64(student[place])
        first = after
    for k in range(mixed_t.shape[0]):
        packed = mixed_t[mixed_t.shape[0] - 1 - k]
        direction = _direction(packed >> np.uint64(32), mixed_s, k - lead)
        total += direction * np.float64(teacher[packed & np.uint64(0xFFFFFFFF)])
    return total


@jit
def _row(student, teacher, slope, tables, sign, start, mixed_s, mixed_t):
    """One row: its value; the slope is written. The tables come and go empty."""
    bits_s, bits_t = student.view(np.uint32), teacher.view(np.uint32)
    low_s, high_s = _count(bits_s, tables[0])
    low_t, high_t = _count(bits_t, tables[1])
    low, high = min(low_s, low_t), max(high_s, high_t)
    left = _judge(tables[0], tables[1], sign, start, low, high)
    total = _settle(student, bits_s, sign, start[0], mixed_s, slope)
    total -= _settle(teacher, bits_t, sign, start[1], mixed_t, slope[:0])
    if left > 0:
        for bucket in range(low, high + 1):
            if sign[bucket] == MIXED:
                end_s, end_t = start[0, bucket], start[1, bucket]
                part_s = mixed_s[end_s - tables[0, bucket] : end_s]
                part_t = mixed_t[end_t - tables[1, bucket] : end_t]
                _sort(part_s)
                _sort(part_t)
                total += _compare(part_s, part_t, start[2, bucket], student, teacher, slope)
    tables[:, low : high + 1] = 0
    return total


@jit
def rows(student, teacher, value, slope):
    """See `sorted_l1.sorted_l1`; the results are written into `value` and `slope`."""
    tables = np.zeros((2, BUCKETS), np.int32)
    sign = np.zeros(BUCKETS, np.int8)
    start = np.zeros((3, BUCKETS), np.int64)
    mixed_s = np.empty(student.shape[1], np.uint64)
    mixed_t = np.empty(teacher.shape[1], np.uint64)
    for row in range(student.shape[0]):
        value[row] = _row(
            student[row], teacher[row], slope[row], tables, sign, start, mixed_s, mixed_t
        )
