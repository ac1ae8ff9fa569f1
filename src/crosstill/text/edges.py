"""Edge maps: which places of a text correspond to which places of its rewriting.

An edge map is an int64 array [E, 2] of character positions `(old, new)`, from `(0, 0)` to both
ends, never decreasing. Two neighbouring rows bound a piece of the old text and its image. Where
characters were deleted `new` stands still, where some were inserted `old` does.
"""

from collections.abc import Sequence

import numpy as np

_ESCAPED = 0xDC00  # a raw byte above 0x7F, as Python's "surrogateescape" writes it


def identity(length: int) -> np.ndarray:
    """The edge map of a text that stayed as it was."""
    line = np.arange(length + 1, dtype=np.int64)
    return np.stack([line, line], axis=1)


def whole(old_length: int, new_length: int) -> np.ndarray:
    """The edge map that knows nothing but the ends."""
    return np.array([[0, 0], [old_length, new_length]], np.int64)


def substituted(
    length: int, spans: Sequence[tuple[int, int]], sizes: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The edge map of a text of `length` characters whose `spans` were replaced.

    Args:
        length: Characters of the old text.
        spans: Replaced ranges `(start, end)`, apart and in order, none of them empty.
        sizes: How many characters replaced each.

    Example:
        >>> substituted(4, [(1, 3)], [1]).tolist()
        [[0, 0], [1, 1], [3, 2], [4, 3]]
    """
    if len(spans) == 0:
        return identity(length)
    starts, ends = np.asarray(spans, np.int64).T
    shift = np.zeros(length + 2, np.int64)
    np.add.at(shift, ends, np.asarray(sizes, np.int64) - (ends - starts))
    depth = np.zeros(length + 2, np.int64)
    np.add.at(depth, starts + 1, 1)
    np.add.at(depth, ends, -1)
    old = np.flatnonzero(np.cumsum(depth)[: length + 1] == 0)
    return np.stack([old, old + np.cumsum(shift)[old]], axis=1)


def led(edges: np.ndarray | None, size: int, length: int) -> np.ndarray | None:
    """The edge map when `size` characters are put before the new text as well.

    Args:
        edges: The edge map without them; `None` is no change.
        size: How many are put there.
        length: Characters of the old text.

    Example:
        >>> led(None, 2, length=1).tolist()
        [[0, 0], [0, 2], [1, 3]]
    """
    if size == 0:
        return edges
    shifted = (identity(length) if edges is None else edges) + np.array([0, size])
    return np.concatenate([[[0, 0]], shifted])


def compose(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """The edge map of two rewritings in turn: the places that both can tell; `None` is no change.

    Example:
        Two characters became one, then that one was deleted.

        >>> first, second = np.array([[0, 0], [2, 1], [3, 2]]), np.array([[0, 0], [1, 0], [2, 1]])
        >>> compose(first, second).tolist()
        [[0, 0], [2, 0], [3, 1]]
    """
    if first is None or second is None:
        return second if first is None else first
    left = first[np.isin(first[:, 1], second[:, 0])]
    right = second[np.isin(second[:, 0], first[:, 1])]
    low = right[np.searchsorted(right[:, 0], left[:, 1]), 1]
    high = left[np.searchsorted(left[:, 1], right[:, 0], side="right") - 1, 0]
    rows = np.concatenate(
        [np.stack([left[:, 0], low], axis=1), np.stack([high, right[:, 1]], axis=1)]
    )
    return np.unique(rows, axis=0)


def joined(maps: Sequence[np.ndarray | None], lengths: Sequence[int]) -> np.ndarray | None:
    """The edge map of neighbouring segments, from the map of each; `None` is no change."""
    if all(edges is None for edges in maps):
        return None
    rows, corner = [np.zeros((1, 2), np.int64)], np.zeros(2, np.int64)
    for edges, length in zip(maps, lengths, strict=True):
        segment = identity(length) if edges is None else edges
        rows.append(segment[1:] + corner)
        corner = corner + segment[-1]
    return np.concatenate(rows)


def byte_starts(text: str) -> np.ndarray:
    """Where each character begins in UTF-8, int64 [characters + 1], the end included.

    A raw byte that "surrogateescape" stands for counts as one.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    sizes = np.where((codes >= _ESCAPED) & (codes < _ESCAPED + 0x100), 1, sizes)
    return np.concatenate([[0], np.cumsum(sizes)])


def byte_pieces(old: bytes, new: bytes, edges: np.ndarray) -> np.ndarray:
    """Pieces `(o0, o1, n0, n1)`, int64 [P, 4], from an edge map in bytes.

    Neighbouring pieces whose bytes are unchanged become one.
    """
    old_size, new_size = np.diff(edges, axis=0).T
    keep = (old_size > 0) | (new_size > 0)
    starts, old_size, new_size = edges[:-1][keep], old_size[keep], new_size[keep]
    if len(starts) == 0:
        return np.zeros((0, 4), np.int64)
    same = _unchanged(old, new, starts, old_size, old_size == new_size)
    first = np.flatnonzero(np.append(True, ~(same[1:] & same[:-1])))
    tail = [[len(old), len(new)]]
    corners = np.concatenate([starts[first], tail])
    return np.stack([corners[:-1, 0], corners[1:, 0], corners[:-1, 1], corners[1:, 1]], axis=1)


def _unchanged(
    old: bytes, new: bytes, starts: np.ndarray, sizes: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """Which of the pieces at `starts` hold the same bytes, bool [P]."""
    piece = np.repeat(np.arange(len(sizes)), np.where(candidates, sizes, 0))
    offset = np.arange(len(piece)) - np.searchsorted(piece, piece)
    here = np.frombuffer(old, np.uint8)[starts[piece, 0] + offset]
    there = np.frombuffer(new, np.uint8)[starts[piece, 1] + offset]
    same = candidates.copy()
    same[piece[here != there]] = False
    return same
