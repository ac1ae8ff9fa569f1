"""From each side's own bytes to one common line, where a tokenizer may have rewritten the text.

Positions on the line are bytes of the original text, times `SCALE`, so that a token edge that no
edge of the other side may match finds a place of its own between them. A normaliser's rewriting is
given as pieces `(o0, o1, n0, n1)`: original bytes `[o0, o1)` became `[n0, n1)`. Then

- an edge between two pieces, or inside an unchanged piece, has its place in the original;
- an edge strictly inside a changed piece has none: half an accent cannot be matched;
- where bytes were deleted, one edge stands for the whole deleted range, and takes the place in it
  where the other side has an edge: the deleted bytes then belong to the chunk behind them, or to
  the last chunk at the end of the text;
- where bytes were inserted, they belong to the chunk behind them in the same way.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from crosstill.text.normalize import Normalization

SCALE = 8
_STUDENT, _TEACHER = 1, 2
_MOST_CHARACTERS = 64  # of a changed piece that is still searched for places to cut


@dataclass(frozen=True)
class Rewriting:
    """How one side's bytes came from the original text.

    Attributes:
        pieces: int64 [P, 4], rows `(o0, o1, n0, n1)` in order, tiling both texts.
        unchanged: bool [P], whether the bytes of the piece are the same in both.
    """

    pieces: np.ndarray
    unchanged: np.ndarray

    @classmethod
    def of(cls, original: bytes, spelled: bytes, pieces: np.ndarray) -> "Rewriting":
        """The rewriting of `original` into `spelled` by `pieces`."""
        merged = _merged(pieces)
        unchanged = [original[o0:o1] == spelled[n0:n1] for o0, o1, n0, n1 in merged.tolist()]
        return cls(merged, np.array(unchanged, bool))

    @classmethod
    def none(cls, n_bytes: int) -> "Rewriting":
        """A text that stayed as it was."""
        return cls(np.array([[0, n_bytes, 0, n_bytes]]), np.array([True]))


def _merged(pieces: np.ndarray) -> np.ndarray:
    """Pieces with neighbouring insertions and deletions joined, so that each place has one."""
    pieces = np.asarray(pieces, np.int64).reshape(-1, 4)
    if len(pieces) == 0:
        return pieces
    lopsided = (pieces[:, 0] == pieces[:, 1]) | (pieces[:, 2] == pieces[:, 3])
    first = np.flatnonzero(np.append(True, ~(lopsided[1:] & lopsided[:-1])))
    last = np.append(first[1:], len(pieces)) - 1
    return np.stack([pieces[first, 0], pieces[last, 1], pieces[first, 2], pieces[last, 3]], axis=1)


@dataclass(frozen=True)
class _Places:
    """Where edges lie in the original: anywhere in `[low, high]`, or (`beside`) next to it."""

    low: np.ndarray
    high: np.ndarray
    beside: np.ndarray


def _places(edges: np.ndarray, rewriting: Rewriting) -> _Places:
    pieces = rewriting.pieces
    old, new = (np.append(pieces[:, a], pieces[-1:, b]) for a, b in ((0, 1), (2, 3)))
    if len(pieces) == 0:
        old = new = np.zeros(1, np.int64)
    left = np.searchsorted(new, edges, side="left")
    last = np.searchsorted(new, edges, side="right") - 1
    on_seam = left <= last
    kept = np.append(rewriting.unchanged, False)[last]
    low = np.where(on_seam, old[np.minimum(left, last)], old[last] + kept * (edges - new[last]))
    high = np.where(on_seam, old[last], low)
    beside = np.where(on_seam | kept, 0, 1)
    inserted = pieces[(pieces[:, 0] == pieces[:, 1]) & (pieces[:, 2] < pieces[:, 3])]
    for _, _, n0, n1 in inserted.tolist():
        _place_insertion(edges, n0, n1, beside)
    return _Places(low, high, beside)


def _place_insertion(edges: np.ndarray, n0: int, n1: int, beside: np.ndarray) -> None:
    """Lets one edge of an inserted range stand for its place, and the others lie beside it."""
    here = np.flatnonzero((edges >= n0) & (edges <= n1))
    if len(here) == 0:
        return
    first, final = edges[here[0]] == n0, edges[here[-1]] == n1
    at_end = here[-1] == len(edges) - 1
    if final and (at_end or not first):
        beside[here] = -1
        beside[here[-1]] = 0
    else:
        beside[here] = 1
        beside[here[0]] = 0 if first else 1


def _settle(own: _Places, other: _Places) -> np.ndarray:
    """Where deleted bytes leave a choice of places, takes one where the other side has an edge."""
    place = own.low.copy()
    matchable = other.low[other.beside == 0]
    for k in np.flatnonzero(own.low < own.high):
        low, high = own.low[k], own.high[k]
        if k == len(place) - 1:
            found = np.searchsorted(matchable, high, side="right") - 1
        else:
            found = np.searchsorted(matchable, low, side="left")
        if 0 <= found < len(matchable) and low <= matchable[found] <= high:
            place[k] = matchable[found]
    return place


def common_line(
    student_edges: np.ndarray,
    student_rewriting: Rewriting,
    teacher_edges: np.ndarray,
    teacher_rewriting: Rewriting,
) -> tuple[np.ndarray, np.ndarray]:
    """Places the token edges of both sides on one line.

    Args:
        student_edges: int64, strictly increasing, in bytes of what the student's tokens spell.
        student_rewriting: how those bytes came from the original text.
        teacher_edges: as `student_edges`.
        teacher_rewriting: as `student_rewriting`.

    Returns:
        Two int64 arrays, the coordinates of the edges; two are equal across the sides exactly where
        a chunk may begin or end there. Byte p of the original text lies at `SCALE * p`.

    Example:
        The student composed "e" + accent (3 bytes) into "é" (2 bytes) and cut that in two.

        >>> composed = Rewriting(np.array([[0, 3, 0, 2], [3, 4, 2, 3]]), np.array([False, True]))
        >>> student, teacher = common_line(
        ...     np.array([0, 1, 2, 3]), composed, np.array([0, 1, 3, 4]), Rewriting.none(4))
        >>> sorted(set(student.tolist()) & set(teacher.tolist()))
        [0, 24, 32]
    """
    student = _places(np.asarray(student_edges), student_rewriting)
    teacher = _places(np.asarray(teacher_edges), teacher_rewriting)
    return (
        SCALE * _settle(student, teacher) + _STUDENT * student.beside,
        SCALE * _settle(teacher, student) + _TEACHER * teacher.beside,
    )


def rewritten_line(
    text: str,
    student_normalization: "Normalization",
    student_edges: np.ndarray,
    teacher_normalization: "Normalization",
    teacher_edges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """`common_line` for a text that a normaliser changed, from the normalisers themselves.

    Args:
        text: The original text.
        student_normalization: How the student's tokenizer rewrites it.
        student_edges: int64 [Ts + 1], never decreasing, in bytes of what the student spells for
            `text`, prefix excluded.
        teacher_normalization: How the teacher's tokenizer rewrites it.
        teacher_edges: int64 [Tt + 1], as `student_edges`.

    Returns:
        The coordinates of both sides' edges. Where both rewrite the text alike, what they spell is
        the common line, and edges inside rewritten characters meet too.
    """
    normalizations = student_normalization, teacher_normalization
    spellings = [normalization.spelled(text) for normalization in normalizations]
    if spellings[0] == spellings[1]:
        return SCALE * student_edges, SCALE * teacher_edges
    original = text.encode()
    rewritings = [
        Rewriting.of(original, spelled, _refined(original, spelled, normalization, text))
        for spelled, normalization in zip(spellings, normalizations, strict=True)
    ]
    (student, at_student), (teacher, at_teacher) = (
        np.unique(edges, return_inverse=True) for edges in (student_edges, teacher_edges)
    )
    student, teacher = common_line(student, rewritings[0], teacher, rewritings[1])
    return student[at_student], teacher[at_teacher]


def _refined(
    original: bytes, spelled: bytes, normalization: "Normalization", text: str
) -> np.ndarray:
    """The normaliser's pieces, cut wherever both halves of a changed one are rewritten apart."""
    rows = []
    for o0, o1, n0, n1 in normalization.pieces(text).tolist():
        old, new = original[o0:o1], spelled[n0:n1]
        cuts = ((0, 0),)
        if old != new and o1 - o0 > 1:
            cuts = _cuts(normalization, old.decode("utf-8", "surrogateescape"), new)
        for (a, b), (c, d) in pairwise([*cuts, (o1 - o0, n1 - n0)]):
            rows.append((o0 + a, o0 + c, n0 + b, n0 + d))
    return np.array(rows, np.int64).reshape(-1, 4)


@lru_cache(maxsize=1 << 14)
def _cuts(normalization: "Normalization", old: str, new: bytes) -> tuple[tuple[int, int], ...]:
    """Where `old` may be cut, and where `new`, what it becomes, is then cut; in bytes, from 0."""
    cuts = [(0, 0)]
    if not 1 < len(old) <= _MOST_CHARACTERS or normalization.spelled(old) != new:
        return tuple(cuts)
    for k in range(1, len(old)):
        head, tail = normalization.spelled(old[:k]), normalization.spelled(old[k:])
        if head + tail == new and len(head) >= cuts[-1][1]:
            cuts.append((len(old[:k].encode()), len(head)))
    return tuple(cuts)
