"""The loops of `nearest`, compiled with numba. Imported on first use: numba is slow to load.

Strings are ragged: the bytes of string i are `data[start[i] : end[i]]`.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from crosstill.kernels.jit import jit

ONE, ZERO = np.uint64(1), np.uint64(0)
BASE = np.uint64(0x9E3779B97F4A7C15)
TOP = np.uint64(1 << 63)


@intrinsic
def _popcount(context: Any, x: Any = None) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@jit
def _mixed(x):
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(32))


@jit
def _deletions(data, start, end, hashes):
    """Writes the hash of a string and of every string with one byte left out; tells how many."""
    n = end - start
    suffix = np.empty(n + 1, np.uint64)
    suffix[n] = ZERO
    power = ONE
    for i in range(n - 1, -1, -1):
        suffix[i] = suffix[i + 1] + power * np.uint64(data[start + i] + 1)
        power *= BASE
    hashes[0] = _mixed(suffix[0] + np.uint64(n))
    head, size = ZERO, np.uint64(n - 1)
    powers = np.empty(n + 1, np.uint64)
    powers[0] = ONE
    for i in range(n):
        powers[i + 1] = powers[i] * BASE
    count = 1
    for i in range(n):
        if i == 0 or data[start + i] != data[start + i - 1]:
            hashes[count] = _mixed(head * powers[n - 1 - i] + suffix[i + 1] + size)
            count += 1
        head = head * BASE + np.uint64(data[start + i] + 1)
    return count


@jit
def _within_one(a, a0, a1, b, b0, b1):
    """Whether two strings are at most one edit apart."""
    while a0 < a1 and b0 < b1 and a[a0] == b[b0]:
        a0 += 1
        b0 += 1
    while a0 < a1 and b0 < b1 and a[a1 - 1] == b[b1 - 1]:
        a1 -= 1
        b1 -= 1
    return a1 - a0 <= 1 and b1 - b0 <= 1


@jit
def one_edit(data, start, end, queries, query_start, query_end):
    """For every query the first candidate at one edit (or none) from it; -1 where there is none."""
    room = 1
    for c in range(start.shape[0]):
        room += end[c] - start[c] + 1
    bits = np.uint64(1)
    while (1 << bits) < room:
        bits += ONE
    mask = (ONE << bits) - ONE
    head = np.full(1 << bits, -1, np.int32)
    after, owner = np.empty(room, np.int32), np.empty(room, np.int32)
    key = np.empty(room, np.uint64)
    longest = 0
    for c in range(start.shape[0]):
        longest = max(longest, end[c] - start[c])
    for q in range(query_start.shape[0]):
        longest = max(longest, query_end[q] - query_start[q])
    hashes = np.empty(longest + 1, np.uint64)
    n = 0
    for c in range(start.shape[0] - 1, -1, -1):  # so that every chain ascends
        for k in range(_deletions(data, start[c], end[c], hashes)):
            place = hashes[k] & mask
            key[n], owner[n], after[n] = hashes[k], c, head[place]
            head[place] = n
            n += 1
    found = np.full(query_start.shape[0], -1, np.int64)
    for q in range(query_start.shape[0]):
        best = start.shape[0]
        q0, q1 = query_start[q], query_end[q]
        for k in range(_deletions(queries, q0, q1, hashes)):
            at = head[hashes[k] & mask]
            while at >= 0 and owner[at] < best:
                c = owner[at]
                if key[at] == hashes[k] and _within_one(queries, q0, q1, data, start[c], end[c]):
                    best = c
                at = after[at]
        if best < start.shape[0]:
            found[q] = best
    return found


@jit
def signatures(data, start, end, bucket):
    """Two words for each string: buckets of bytes that occur, and that occur twice at least."""
    once, twice = np.zeros(start.shape[0], np.uint64), np.zeros(start.shape[0], np.uint64)
    for c in range(start.shape[0]):
        for i in range(start[c], end[c]):
            bit = ONE << bucket[data[i]]
            twice[c] |= once[c] & bit
            once[c] |= bit
    return once, twice


@jit
def _bounds(one, two, once, twice, least, out):
    """Lower bounds of the distance: bytes that one string has and the other lacks. Their least."""
    lowest = np.uint16(65535)
    for c in range(once.shape[0]):
        ours = _popcount(one & ~once[c]) + _popcount(two & ~twice[c])
        theirs = _popcount(once[c] & ~one) + _popcount(twice[c] & ~two)
        out[c] = np.uint16(max(max(ours, theirs), np.uint64(least)))
    for c in range(out.shape[0]):
        lowest = min(lowest, out[c])
    return lowest


@jit
def _long_distance(peq, size, work, text, start, end, limit):
    """As `_distance`, for a pattern of several words.

    Source: Myers, 1999, in the block form of Hyyrö, 2003.
    """
    words = (size + 63) // 64
    for w in range(words):
        work[0, w], work[1, w] = ~ZERO, ZERO
    last = ONE << np.uint64((size - 1) & 63)
    score = size
    for at in range(start, end):
        carry = 1
        for w in range(words):
            equal, p, m = peq[text[at], w], work[0, w], work[1, w]
            vertical = equal | m
            if carry < 0:
                equal |= ONE
            horizontal = (((equal & p) + p) ^ p) | equal
            up, down = m | ~(horizontal | p), p & horizontal
            top = last if w == words - 1 else TOP
            into = carry
            carry = 1 if up & top else (-1 if down & top else 0)
            up, down = up << ONE, down << ONE
            if into > 0:
                up |= ONE
            elif into < 0:
                down |= ONE
            work[0, w], work[1, w] = down | ~(vertical | up), up & vertical
        score += carry
        if score - (end - at - 1) > limit:
            return limit + 1
    return score


@jit
def _distance(peq, size, work, text, start, end, limit):
    """Levenshtein distance of a pattern and a text, or anything above `limit`.

    `peq` holds a word with the places of every byte of the pattern, or several of them.
    """
    if size > 64:
        return _long_distance(peq, size, work, text, start, end, limit)
    last, score = ONE << np.uint64(size - 1), size
    positive, negative = ~ZERO, ZERO
    for at in range(start, end):
        equal = peq[text[at], 0]
        diagonal = (((equal & positive) + positive) ^ positive) | equal | negative
        up, down = negative | ~(diagonal | positive), positive & diagonal
        if up & last:
            score += 1
        elif down & last:
            score -= 1
        if score - (end - at - 1) > limit:
            return limit + 1
        up, down = (up << ONE) | ONE, down << ONE
        positive, negative = down | ~(diagonal | up), up & diagonal
    return score


@jit
def _list(level, blocks, lengths, size, one, two, once, twice, bound, low, listed):
    """Lists the strings whose bound is `level`; tells how many.

    A bound is never below the difference in length, so that those of a block are made at the level
    of its difference and kept for the levels above.
    """
    count = 0
    for b in range(lengths.shape[0]):
        i, j, least = blocks[b], blocks[b + 1], abs(lengths[b] - size)
        if least == level:
            low[b] = _bounds(one, two, once[i:j], twice[i:j], least, bound[i:j])
        if least <= level and low[b] <= level:
            for c in range(i, j):
                if bound[c] == level:
                    listed[count] = c
                    count += 1
    return count


@jit
def scan(
    data, start, end, id, blocks, lengths, once, twice,
    queries, query_start, query_end, query_once, query_twice, best,
):  # fmt: skip
    """Writes for every query the id of the string with the least distance, the lowest on ties.

    Strings are measured in the order of their lower bounds, until the bound is above the distance.

    Args:
        data: bytes of the strings, which are ordered by length.
        start: where each begins.
        end: where each ends.
        id: what to write for each.
        blocks: where blocks of strings with one length begin, and the end of the last.
        lengths: the length of each block's strings.
        once: as `signatures` gives it.
        twice: the same.
        queries: bytes of the queries, none empty.
        query_start: where each begins.
        query_end: where each ends.
        query_once: the signatures of the queries.
        query_twice: the same.
        best: int64, an id for each query; written.
    """
    longest = 1
    for q in range(query_start.shape[0]):
        longest = max(longest, query_end[q] - query_start[q])
    peq = np.zeros((256, (longest + 63) // 64), np.uint64)
    work = np.empty((2, (longest + 63) // 64), np.uint64)
    bound, low = np.empty(start.shape[0], np.uint16), np.empty(lengths.shape[0], np.uint16)
    listed = np.empty(start.shape[0], np.int32)
    for q in range(query_start.shape[0]):
        query = queries[query_start[q] : query_end[q]]
        size, one, two = query.shape[0], query_once[q], query_twice[q]
        for i in range(size):
            peq[query[i], i // 64] |= ONE << np.uint64(i & 63)
        distance, chosen, level = 1 << 30, -1, 0
        while level <= distance:
            count = _list(level, blocks, lengths, size, one, two, once, twice, bound, low, listed)
            for c in listed[:count]:
                if level < distance or id[c] < chosen:
                    d = _distance(peq, size, work, data, start[c], end[c], distance)
                    if d < distance or (d == distance and id[c] < chosen):
                        distance, chosen = d, id[c]
            level += 1
        best[q] = chosen
        for i in range(size):
            peq[query[i]] = ZERO
