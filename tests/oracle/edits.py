"""The nearest string by edit distance, in plain loops."""

from collections.abc import Mapping


def distance(one: bytes, other: bytes) -> int:
    """Levenshtein: insertions, deletions and substitutions of bytes at cost one."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            above, row[j] = row[j], min(above + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def nearest(query: bytes, candidates: Mapping[bytes, int]) -> int:
    """The id of the nearest candidate, the lowest of several."""
    return min((distance(query, text), id) for text, id in candidates.items())[1]
