"""The loops of `sorted_l1`, compiled with numba. Imported on first use: numba is slow to load.

The arguments ending in `_s` belong to the student's row, those ending in `_t` to the teacher's.
"""

import numpy as np

from crosstill.kernels.jit import jit

SHIFT = 13
"""Bits of a float32 below those that choose the bucket: 1,024 buckets for each power of two."""

LOW = (1 << SHIFT) - 1
"""The bits below, all set."""

BUCKETS = (0x3F800000 >> SHIFT) + 3
"""That of zero, those up to 1.0, one for a rounding error above it, one for no probability."""

MIXED = 0
"""In place of a sign: the bucket has to be sorted."""

PLACE = np.uint64(0xFFFFFFFF)
"""Where an entry that was gathered stands in its row; its bits are above."""

HALF = np.uint64(32)
"""How far above."""


@jit
def _key(bits):
    """A number ordered as the values are, which gives zero a bucket of its own."""
    return np.int64(bits) + LOW


@jit
def _bucket(bits):
    """The bucket of a value; the last one takes what is no probability (a NaN)."""
    return min(_key(bits) >> SHIFT, BUCKETS - 1)


@jit
def _bounds(bits):
    """The lowest and the highest bucket in use."""
    low, high = np.uint32(0xFFFFFFFF), np.uint32(0)
    # Alone and in this form it is done in wide registers, while counting it is not.
    for i in range(bits.shape[0]):
        one = bits[i]
        low = one if one < low else low
        high = one if one > high else high
    return _bucket(low), _bucket(high)


@jit
def _count(bits, table):
    """Counts the entries of every bucket."""
    for i in range(bits.shape[0]):
        table[_bucket(bits[i])] += 1


@jit
def _judge(table_s, table_t, sign, parts, low, high):
    """Gives every bucket a sign, and lists those that have to be sorted.

    A row of `parts` is such a bucket: where it begins and ends among the student's gathered
    entries, where among the teacher's, and how far a student's entry there stands from the
    teacher's of the same rank. In the tables its count becomes the place where it begins.

    Returns:
        The number of those buckets, and how many more positive entries the student has.
    """
    lead, mixed_s, mixed_t, found = 0, 0, 0, 0
    # A zero adds nothing, whatever its sign: it needs no sorting.
    sign[0] = 1
    for bucket in range(high, max(low, 1) - 1, -1):
        s, t = table_s[bucket], table_t[bucket]
        if lead - t >= 0:
            sign[bucket] = 1
        elif lead + s <= 0:
            sign[bucket] = -1
        else:
            sign[bucket] = MIXED
            table_s[bucket], table_t[bucket] = mixed_s, mixed_t
            parts[found, 0], parts[found, 1] = mixed_s, mixed_s + s
            parts[found, 2], parts[found, 3] = mixed_t, mixed_t + t
            parts[found, 4] = mixed_t + lead - mixed_s
            mixed_s += s
            mixed_t += t
            found += 1
        lead += s - t
    return found, lead


@jit
def _settle_student(values, sign, gathered, slope):
    """Writes the slopes of settled buckets, and gathers the bits and places of the others.

    Returns:
        The sum of the settled entries with their signs, and how many were gathered.
    """
    bits = values.view(np.uint32)
    total, count = 0.0, 0
    for i in range(bits.shape[0]):
        direction = sign[_bucket(bits[i])]
        slope[i] = direction
        total += direction * np.float64(values[i])
        # Always written, seldom kept: a branch would be guessed wrong too often.
        gathered[count] = (np.uint64(bits[i]) << HALF) | np.uint64(i)
        count += direction == MIXED
    return total, count


@jit
def _settle_teacher(values, sign, gathered):
    """`_settle_student` for the side that has no slope: the bits alone are gathered."""
    bits = values.view(np.uint32)
    total, count = 0.0, 0
    for i in range(bits.shape[0]):
        direction = sign[_bucket(bits[i])]
        total += direction * np.float64(values[i])
        gathered[count] = bits[i]
        count += direction == MIXED
    return total, count


@jit
def _order(gathered, count, half, spare, digits, start):
    """Sorts what was gathered, the largest first: by the low bits, then into its buckets.

    Args:
        gathered: of which the first `count` are sorted.
        count: see there.
        half: how far the bits stand above.
        spare: as long.
        digits: a number for every value of the low bits.
        start: where each bucket begins; afterwards where it ends.
    """
    digits[:] = 0
    for k in range(count):
        digits[_key(gathered[k] >> half) & LOW] += 1
    place = 0
    for digit in range(LOW, -1, -1):
        size = digits[digit]
        digits[digit] = place
        place += size
    for k in range(count):
        digit = _key(gathered[k] >> half) & LOW
        spare[digits[digit]] = gathered[k]
        digits[digit] += 1
    for k in range(count):
        bucket = _bucket(spare[k] >> half)
        gathered[start[bucket]] = spare[k]
        start[bucket] += 1


@jit
def _pair(parts, found, gathered_s, gathered_t, slope):
    """Pairs the sorted entries by rank and writes their slopes; returns their share of the sum.

    An entry whose partner stands in a bucket above is smaller, one whose partner is below larger.
    """
    # A float32 each: the student's bits are the upper half, the second one in memory.
    values_s, values_t = gathered_s.view(np.float32)[1::2], gathered_t.view(np.float32)
    total = 0.0
    for part in range(found):
        first_s, end_s = parts[part, 0], parts[part, 1]
        first_t, end_t = parts[part, 2], parts[part, 3]
        shift = parts[part, 4]
        first = min(max(first_t - shift, first_s), end_s)
        end = max(min(end_t - shift, end_s), first)
        for k in range(first_s, first):
            total -= np.float64(values_s[k])
            slope[gathered_s[k] & PLACE] = -1
        for k in range(first, end):
            gap = np.float64(values_s[k]) - np.float64(values_t[k + shift])
            total += abs(gap)
            slope[gathered_s[k] & PLACE] = np.int32(gap > 0) - np.int32(gap < 0)
        for k in range(end, end_s):
            total += np.float64(values_s[k])
            slope[gathered_s[k] & PLACE] = 1
        for k in range(first_t, min(first_s + shift, end_t)):
            total -= np.float64(values_t[k])
        for k in range(max(end_s + shift, first_t), end_t):
            total += np.float64(values_t[k])
    return total


@jit
def _average(gathered, count, slope):
    """Gives equal entries, which stand together, the mean of their slopes."""
    end = 1
    while end < count:
        first = end - 1
        if gathered[end] >> HALF == gathered[first] >> HALF:
            signs = 0.0
            end = first
            while end < count and gathered[end] >> HALF == gathered[first] >> HALF:
                signs += slope[gathered[end] & PLACE]
                end += 1
            mean = signs / (end - first)
            for k in range(first, end):
                slope[gathered[k] & PLACE] = mean
        else:
            end += 1


@jit
def _settle_zeros(bits, zeros, lead, slope):
    """Gives the student's zeros their mean slope: those with a positive partner count -1."""
    mean = np.float32(-min(max(-lead, 0), zeros) / zeros)
    for i in range(bits.shape[0]):
        if bits[i] == 0:
            slope[i] = mean


@jit
def _row(student, teacher, slope, tables, sign, parts, room_s, room_t, digits):
    """One row: its value; the slope is written. The tables come and go empty."""
    bits_s, bits_t = student.view(np.uint32), teacher.view(np.uint32)
    low_s, high_s = _bounds(bits_s)
    low_t, high_t = _bounds(bits_t)
    low, high = min(low_s, low_t), max(high_s, high_t)
    _count(bits_s, tables[0])
    _count(bits_t, tables[1])
    zeros = tables[0, 0]
    found, lead = _judge(tables[0], tables[1], sign, parts, low, high)
    total_s, count_s = _settle_student(student, sign, room_s[0], slope)
    total_t, count_t = _settle_teacher(teacher, sign, room_t[0])
    total = total_s - total_t
    if found > 0:
        _order(room_s[0], count_s, HALF, room_s[1], digits, tables[0])
        _order(room_t[0], count_t, np.uint32(0), room_t[1], digits, tables[1])
        total += _pair(parts, found, room_s[0], room_t[0], slope)
        _average(room_s[0], count_s, slope)
    if zeros > 0:
        _settle_zeros(bits_s, zeros, lead, slope)
    tables[:, low : high + 1] = 0
    return total


@jit
def rows(student, teacher, value, slope):
    """See `sorted_l1.sorted_l1`; the results are written into `value` and `slope`."""
    tables = np.zeros((2, BUCKETS), np.int32)
    sign = np.zeros(BUCKETS, np.int8)
    parts = np.empty((BUCKETS, 5), np.int32)
    room_s = np.empty((2, student.shape[1]), np.uint64)
    room_t = np.empty((2, teacher.shape[1]), np.uint32)
    digits = np.empty(LOW + 1, np.int32)
    for row in range(student.shape[0]):
        value[row] = _row(
            student[row], teacher[row], slope[row], tables, sign, parts, room_s, room_t, digits
        )
