"""The nearest of many strings by edit distance, exactly, for a vocabulary at a time.

Two steps. Strings one edit apart share a string with one byte left out (or are it), so a hash table
of those finds them without a comparison of all with all. For what is left, the strings are measured
in the order of a lower bound of their distance (bytes that only one of the two has), which two
words a string give at a few operations, until no bound is below the least distance found.

Source: Myers, "A fast bit-vector algorithm for approximate string matching", 1999, for the
distance; deletion neighbourhoods after Mor and Fraenkel, 1982. Oracle: tests/oracle/edits.py.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from tqdm import tqdm

from crosstill.errors import ConfigError

_BLOCK = 256  # strings whose bounds are made at once
_SLICE = 1000  # queries between two signs of progress
_QUIET_SECONDS = 3  # before the first sign
_SIGN_SECONDS = 1
_OWN_BITS = 48  # of 64: for the most frequent bytes; the others share the rest

_Strings = tuple[np.ndarray, np.ndarray, np.ndarray]


def nearest(queries: Sequence[bytes], candidates: Mapping[bytes, int]) -> np.ndarray:
    r"""The id of the candidate with the least Levenshtein distance over bytes.

    One insertion, deletion or substitution of a byte costs one; of several nearest candidates the
    one with the lowest id is taken. Shows progress on standard error after a few seconds.

    Args:
        queries: Not empty ones.
        candidates: The id of each string.

    Returns:
        int64 [Q], an id for each query.

    Raises:
        ConfigError: There are queries but no candidates, or an empty query.

    Example:
        >>> nearest([b"catz", b"\n\n"], {b"cats": 7, b"cat": 9, b"\n": 3}).tolist()
        [7, 3]
    """
    if not queries:
        return np.zeros(0, np.int64)
    if not candidates or not all(queries):
        raise ConfigError(
            f"expected candidates and queries with at least one byte, got {len(candidates)} "
            f"candidates and {sum(map(bool, queries))} of {len(queries)} queries with bytes: a "
            "vocabulary without any token that spells something has no nearest tokens."
        )
    if _compiled() is None:
        return _all_with_all(queries, candidates)
    found = _one_edit(queries, candidates)
    left = np.flatnonzero(found < 0).tolist()
    found[left] = _measured([queries[k] for k in left], candidates)
    return found


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    try:
        from crosstill.align import nearest_compiled
    except ImportError:  # no numba for this Python version or platform
        return None
    return nearest_compiled


def _all_with_all(queries: Sequence[bytes], candidates: Mapping[bytes, int]) -> np.ndarray:
    """The same without numba, in ten times the time."""
    ordered = sorted(candidates, key=candidates.__getitem__)
    found = []
    for k in tqdm(range(0, len(queries), 8), delay=_QUIET_SECONDS, desc="nearest tokens"):
        part = cdist(queries[k : k + 8], ordered, scorer=Levenshtein.distance, dtype=np.uint16)
        found += [candidates[ordered[c]] for c in part.argmin(axis=1)]
    return np.array(found, np.int64)


def _one_edit(queries: Sequence[bytes], candidates: Mapping[bytes, int]) -> np.ndarray:
    """The lowest id at distance 0, else at distance 1; -1 where there is none."""
    from crosstill.align import nearest_compiled as compiled

    ordered = sorted(candidates, key=candidates.__getitem__)
    place = compiled.one_edit(*_strings(ordered), *_strings(queries))
    found = np.where(place < 0, -1, np.array([candidates[text] for text in ordered])[place])
    exact = [candidates.get(query, -1) for query in queries]
    return np.where(np.array(exact) >= 0, exact, found)


def _measured(queries: Sequence[bytes], candidates: Mapping[bytes, int]) -> np.ndarray:
    """The nearest by a search over all candidates."""
    from crosstill.align import nearest_compiled as compiled

    ordered = sorted(candidates.items(), key=lambda item: (len(item[0]), item[1]))
    data, start, end = _strings([text for text, _ in ordered])
    ids = np.array([id for _, id in ordered], np.int64)
    bucket = _buckets(data)
    lengths = end - start
    edges = np.flatnonzero(np.diff(lengths)) + 1
    blocks = np.union1d(np.arange(0, len(ids), _BLOCK), edges)
    strings = data, start, end, ids, np.append(blocks, len(ids)), lengths[blocks]
    signed = compiled.signatures(data, start, end, bucket)
    asked, first, last = _strings(queries)
    signs = compiled.signatures(asked, first, last, bucket)
    best = np.empty(len(queries), np.int64)
    with tqdm(
        total=len(queries),
        delay=_QUIET_SECONDS,
        mininterval=_SIGN_SECONDS,
        desc="nearest tokens",
        unit=" tokens",
    ) as shown:
        for k in range(0, len(queries), _SLICE):
            part = slice(k, k + _SLICE)
            own = first[part], last[part], signs[0][part], signs[1][part]
            compiled.scan(*strings, *signed, asked, *own, best[part])
            shown.update(len(best[part]))
    return best


def _strings(texts: Sequence[bytes]) -> _Strings:
    """Bytes joined, and where each string starts and ends, int64."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(lengths)
    return np.frombuffer(b"".join(texts), np.uint8), ends - lengths, ends


def _buckets(data: np.ndarray) -> np.ndarray:
    """The bit of a signature for each byte, uint64 [256]; frequent bytes have one of their own."""
    rank = np.empty(256, np.int64)
    rank[np.argsort(-np.bincount(data, minlength=256), kind="stable")] = np.arange(256)
    shared = _OWN_BITS + rank % (64 - _OWN_BITS)
    return np.where(rank < _OWN_BITS, rank, shared).astype(np.uint64)
