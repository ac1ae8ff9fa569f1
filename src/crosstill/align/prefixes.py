"""All tokens of one vocabulary as the other spells them, sorted, so that a prefix is a range.

Sort the tokens by their spellings and every prefix of a spelling is a run of neighbours; what
follows it are shorter runs inside. The mass of all tokens that begin in some way is then the
difference of two entries of one cumulative sum. Arrays only.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

NOWHERE = -1

Ragged = tuple[np.ndarray, np.ndarray]
"""Offsets int64 [V + 1] and ids int64, as `crosstill.align.spellings.spell_tokens` gives them."""


@dataclass(frozen=True, eq=False)
class PrefixTable:
    """The prefixes of a vocabulary's spellings as a tree; node 0 is the empty prefix.

    All arrays are int64. M nodes, N tokens that can be spelled.

    Attributes:
        order: [N], the tokens' ids, sorted by spelling.
        low: [M], the first place in `order` whose spelling begins with the node's prefix.
        high: [M], one past the last.
        end: [M], one past the places whose spelling is the prefix itself; they come first.
        token: [M], the last token of the prefix; -1 for the root.
        child: [M + 1], the children of node n are the nodes `child[n]` to `child[n + 1]`, by token.
        parent: [M], -1 for the root.
    """

    order: np.ndarray
    low: np.ndarray
    high: np.ndarray
    end: np.ndarray
    token: np.ndarray
    child: np.ndarray
    parent: np.ndarray


def prefix_table(spelled: Ragged, keep: np.ndarray | None = None) -> PrefixTable:
    """Sort the spellings of a vocabulary and lay out their prefixes.

    Args:
        spelled: Offsets int64 [V + 1] and ids int64, as `spellings.spell_tokens` gives them.
        keep: bool [V], which tokens are put in; None: all. Tokens without a spelling never are.

    Example:
        >>> table = prefix_table((np.array([0, 1, 3, 3]), np.array([7, 7, 9])))
        >>> table.order.tolist(), table.token.tolist(), table.end.tolist()
        ([0, 1], [-1, 7, 9], [0, 1, 2])
    """
    offsets, ids = spelled
    inside = np.diff(offsets) > 0
    if keep is not None:
        inside &= keep
    order, rows = _sorted_rows(offsets, ids, np.flatnonzero(inside))
    levels = [(np.zeros(1, np.int64), np.array([len(order)]), np.array([-1]), np.array([-1]))]
    starts, first = np.zeros(len(order), np.int64), 0
    depth = rows.shape[1]
    for level in range(depth):
        # `starts`: the node of the level above that each place belongs to.
        alive = np.flatnonzero(rows[:, level] >= 0)
        if not len(alive):
            break
        token, above = rows[alive, level], starts[alive]
        new = np.append(True, (token[1:] != token[:-1]) | (above[1:] != above[:-1]))
        low = alive[new]
        high = np.append(alive[np.flatnonzero(new)[1:] - 1], alive[-1]) + 1
        first += len(levels[-1][0])
        starts = np.full(len(order), NOWHERE)
        starts[alive] = first + np.cumsum(new) - 1
        levels.append((low, high, token[new], above[new]))
    low, high, token, parent = (
        np.concatenate(part).astype(np.int64) for part in zip(*levels, strict=True)
    )
    children = np.bincount(parent[1:], minlength=len(low)) if len(low) > 1 else np.zeros(1, int)
    child = np.concatenate([[1], 1 + np.cumsum(children)]).astype(np.int64)
    # A prefix's own tokens come before those of its first child.
    has = child[1:] > child[:-1]
    end = high.copy()
    end[has] = low[child[:-1][has]]
    return PrefixTable(order, low, high, end, token, child, parent)


def _sorted_rows(
    offsets: np.ndarray, ids: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens sorted by spelling, and their spellings in that order, filled up with -1."""
    flat = np.asarray(ids, ">u4").tobytes()
    keys = [flat[4 * offsets[v] : 4 * offsets[v + 1]] for v in tokens.tolist()]
    by_spelling = sorted(range(len(tokens)), key=keys.__getitem__)  # big-endian: as numbers
    order = tokens[by_spelling]
    lengths = (offsets[1:] - offsets[:-1])[order]
    rows = np.full((len(order), int(lengths.max(initial=0))), NOWHERE, np.int64)
    inside = np.arange(rows.shape[1]) < lengths[:, None]
    rows[inside] = np.concatenate([ids[offsets[v] : offsets[v + 1]] for v in order] or [ids[:0]])
    return order.astype(np.int64), rows


def first_tokens(spelled: Ragged) -> np.ndarray:
    """The first token of every spelling, int64 [V]; -1 where there is none.

    Example:
        >>> first_tokens((np.array([0, 1, 1, 3]), np.array([7, 8, 9]))).tolist()
        [7, -1, 8]
    """
    offsets, ids = spelled
    first = np.full(len(offsets) - 1, NOWHERE, np.int64)
    inside = np.diff(offsets) > 0
    first[inside] = ids[offsets[:-1][inside]]
    return first


def start_classes(
    student_spelled: Ragged, teacher_spelled: Ragged, before_word: Ragged | None = None
) -> np.ndarray:
    """The class of every student token at a place where both models begin a token, int64 [Vs].

    A token that begins some teacher token is a class of its own. Another one spans several teacher
    tokens: at this place it belongs with the token that begins the first of them. So does one that
    spans several only where a word follows. -1: in none.

    Args:
        student_spelled: The student's tokens in the teacher's.
        teacher_spelled: The teacher's tokens in the student's.
        before_word: The student's tokens where a word follows; empty where that is no other
            spelling. None: nowhere.
    """
    begins = first_tokens(teacher_spelled)
    own = np.arange(len(student_spelled[0]) - 1)
    reached = np.isin(own, begins)
    leader = first_tokens(student_spelled)
    pooled = np.where(leader >= 0, begins[leader], NOWHERE)
    kind = np.where(reached, own, pooled)
    if before_word is not None:
        leader = first_tokens(before_word)
        other = np.where(leader >= 0, begins[leader], NOWHERE)
        kind = np.where(other >= 0, other, kind)
    while True:  # what a class is joined with may have been joined itself
        further = np.where(kind >= 0, kind[kind], NOWHERE)
        if np.array_equal(further, kind):
            return kind
        kind = further


def replaced(spelled: Ragged, other: Ragged) -> Ragged:
    """The spellings, but another where there is one.

    Example:
        >>> one = np.array([0, 1, 2]), np.array([7, 8])
        >>> offsets, ids = replaced(one, (np.array([0, 0, 2]), np.array([7, 7])))
        >>> offsets.tolist(), ids.tolist()
        ([0, 1, 3], [7, 7, 7])
    """
    rows = [
        other[1][c:d] if d > c else spelled[1][a:b]
        for (a, b), (c, d) in zip(pairwise(spelled[0]), pairwise(other[0]), strict=True)
    ]
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return offsets, np.concatenate([*rows, spelled[1][:0]])
