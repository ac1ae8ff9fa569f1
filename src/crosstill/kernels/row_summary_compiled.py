"""The loops of `row_summary`, compiled with numba. Imported on first use: numba is slow to load."""

from functools import partial

import numpy as np

from crosstill.kernels.jit import jit

fused = partial(jit, fused=True)

LOWEST = np.float32(-83.0)
"""Nats. What lies further below the best counts as this: smaller powers are slow to add."""

LOG2E = np.float32(1.4426950408889634)
ROUND = np.float32(1.5 * 2**23)
"""Added to a small number it leaves the nearest whole number in the lowest bits."""

C6, C5, C4, C3, C2, C1 = (
    np.float32(c)
    for c in (
        0.00015353361933439746,
        0.00133988744036867,
        0.009618437357481352,
        0.055503324711588864,
        0.2402264791363177,
        0.6931472028550449,
    )
)
"""2^x - 1 from -1/2 to 1/2 as a polynomial without a constant, so that the best entry counts 1.

Fitted for the least relative error of 2^x, which is 2e-9: below that of float32.
"""

ONE, NOTHING = np.float32(1.0), np.float32(-np.inf)

LANES = 64
"""Running sums side by side, so that no addition waits for the one before."""

KEPT = 32
"""Terms of a running sum in float32 before it moves to float64."""

WIDTH = 32
"""Columns in a block, at the most."""

PLACE = np.uint64(0xFFFFFFFF)


@fused
def _exp(below):
    """The exponential of a float32 from `LOWEST` to 0."""
    shifted = below * LOG2E + ROUND
    x = below * LOG2E - (shifted - ROUND)
    power = (((((C6 * x + C5) * x + C4) * x + C3) * x + C2) * x + C1) * x + ONE
    # Times two to the whole number: its lowest bits are added to the exponent's.
    exponent = np.uint32(np.float32(shifted).view(np.uint32) << np.uint32(23))
    bits = np.uint32(np.float32(power).view(np.uint32) + exponent)
    return bits.view(np.float32)


@fused
def _add(strip, best, share, moment):
    """Add two strips' exponentials to `share` and, times what is below the best, to `moment`."""
    for j in range(LANES):
        one, two = strip[j] - best, strip[j + LANES] - best
        one = LOWEST if one < LOWEST else one  # a NaN stays one
        two = LOWEST if two < LOWEST else two
        first, second = _exp(one), _exp(two)
        share[j] += first + second
        moment[j] += first * one + second * two


@jit
def _sums(row, best, share, moment, wide):
    """The sum of the row's exponentials below the best, and of these times their logarithms.

    `share` and `moment` float32 [LANES] and `wide` float64 [2, LANES] are room to work in.
    """
    share[:], moment[:], wide[:] = 0.0, 0.0, 0.0
    step = 2 * LANES
    strips = row.shape[0] // step
    for k in range(strips):
        _add(row[k * step : (k + 1) * step], best, share, moment)
        if (k + 1) % (KEPT // 2) == 0 or k == strips - 1:
            for j in range(LANES):
                wide[0, j] += share[j]
                wide[1, j] += moment[j]
            share[:], moment[:] = 0.0, 0.0
    total, scaled = wide[0].sum(), wide[1].sum()
    for i in range(strips * step, row.shape[0]):
        below = row[i] - best
        below = LOWEST if below < LOWEST else below
        power = _exp(below)
        total += power
        scaled += power * below
    return total, scaled


@jit
def _peaks(row, width, peaks):
    """The largest entry of every block; block c has the columns c, c + blocks, c + 2 blocks ..."""
    blocks = peaks.shape[0]
    peaks[:] = row[:blocks]
    for k in range(1, width):
        part = row[k * blocks : (k + 1) * blocks]
        for c in range(blocks):
            peaks[c] = part[c] if part[c] > peaks[c] else peaks[c]


@jit
def _largest(values, best):
    """The largest of some values and another one."""
    for value in values:
        best = value if value > best else best
    return best


@jit
def _merged(peaks, most, room):
    """The peaks merged until there are at most so many: their largest are found faster."""
    count = peaks.shape[0]
    room[:count] = peaks
    while count > most:
        half = count // 2
        for c in range(half):
            other = room[count - half + c]
            room[c] = other if other > room[c] else room[c]
        count -= half
    return room[:count]


@jit
def _key(value, place):
    """A number that is smaller where the value is larger, or equal and its place lower.

    A NaN counts as the largest value, as torch has it.
    """
    if value != value:
        return np.uint64(place)
    bits = np.float32(value + np.float32(0.0)).view(np.uint32)  # -0.0 equals 0.0
    order = bits if bits >> np.uint32(31) else bits ^ np.uint32(0x7FFFFFFF)
    return (np.uint64(order) << np.uint64(32)) | np.uint64(place)


@jit
def _candidates(row, peaks, cut, limit, keys):
    """Write the keys of the entries that reach the limit; return how many.

    The blocks with these peaks end before the column `cut`.
    """
    count, blocks = 0, peaks.shape[0]
    for c in range(blocks):
        if peaks[c] >= limit:
            for i in range(c, cut, blocks):
                if row[i] >= limit:
                    keys[count] = _key(row[i], i)
                    count += 1
    for i in range(cut, row.shape[0]):
        if row[i] >= limit:
            keys[count] = _key(row[i], i)
            count += 1
    return count


@jit
def _order(keys, ids):
    """Write the places of the smallest keys, in order."""
    k = ids.shape[0]
    found = keys
    if keys.shape[0] > 4 * k:
        found = np.partition(keys, k - 1)[:k]
    found.sort()
    for j in range(k):
        ids[j] = found[j] & PLACE


@jit
def _top(row, peaks, cut, merged, keys, ids):
    """Write the places of the largest entries.

    As many entries as there are ids, or more, reach the limit: the peaks that do.
    """
    k = ids.shape[0]
    limit = np.partition(merged, merged.shape[0] - k)[merged.shape[0] - k]
    _order(keys[: _candidates(row, peaks, cut, limit, keys)], ids)


@jit
def rows(logits, ids, norm, entropy):
    """See `row_summary.row_summary`; the results are written into `ids`, `norm`, `entropy`."""
    size, k = logits.shape[1], ids.shape[1]
    width = min(max(size // (4 * k), 1), WIDTH)
    cut = size - size % width
    peaks, room = np.empty(cut // width, np.float32), np.empty(cut // width, np.float32)
    keys = np.empty(size, np.uint64)
    share, moment = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    wide = np.empty((2, LANES), np.float64)
    for n in range(logits.shape[0]):
        row = logits[n]
        _peaks(row, width, peaks)
        merged = _merged(peaks, 8 * k, room)
        best = _largest(merged, _largest(row[cut:], NOTHING))
        total, scaled = _sums(row, best, share, moment, wide)
        norm[n] = best + np.log(total)
        entropy[n] = np.log(total) - scaled / total
        if k < merged.shape[0] and scaled == scaled:
            _top(row, peaks, cut, merged, keys, ids[n])
        else:
            for i in range(size):
                keys[i] = _key(row[i], i)
            _order(keys, ids[n])
