"""Groups of tokens that an alignment path puts together, as CDM distils them."""

from dataclasses import dataclass

import numpy as np

from crosstill.align.dtw import Path
from crosstill.align.symbols import SymbolTable

ROWS = ("mean", "first")
"""Which of a group's rows stand for it: their mean, or the first of each side."""


@dataclass(frozen=True, eq=False)
class Side:
    """Which tokens of one side are in which group, and with which weight.

    Attributes:
        group: int64 [E], ascending.
        token: int64 [E], ascending within a group, each at most once there.
        weight: float64 [E]; the weights of a group add up to 1.
    """

    group: np.ndarray
    token: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of one path.

    Attributes:
        count: G.
        teacher: Its side.
        student: Its side.
        teacher_span: int64 [2, G]: each group's first teacher token, and the one after its last.
        student_span: int64 [2, G].
    """

    count: int
    teacher: Side
    student: Side
    teacher_span: np.ndarray
    student_span: np.ndarray


def path_groups(path: Path, *, rows: str = "mean") -> Groups:
    r"""Group the tokens of a path: one group for each different set of student tokens.

    The student tokens that one teacher token is paired with are a set; every different set, in
    order, is a group. With rows :math:`z^T_i` and :math:`z^S_j` the group's rows are

    .. math:: T_g = \operatorname{mean}_{j \in g} \operatorname{mean}_{i \sim j} z^T_i, \qquad
              S_g = \operatorname{mean}_{j \in g} z^S_j

    Args:
        path: The path.
        rows: "mean", as above, or "first": the rows that predict the first token of each side,
            the only ones before which both models have read the same text.

    Source: arXiv:2502.11104 and its released code; two sets may share a student token.

    Example:
        >>> path = Path(np.array([0, 1, 2]), np.array([0, 0, 1]), 0.0, 0.0)
        >>> groups = path_groups(path)
        >>> groups.teacher.group.tolist(), groups.teacher.token.tolist(), groups.teacher.weight
        ([0, 0, 1], [0, 1, 2], array([0.5, 0.5, 1. ]))
    """
    low, high = _sets(path)
    new = np.concatenate([[True], (low[1:] != low[:-1]) | (high[1:] != high[:-1])])
    low, high = low[new], high[new] + 1
    count = len(low)
    # Student tokens never go back along a path, so those of a group are one stretch of it.
    first, last = np.searchsorted(path.student, low), np.searchsorted(path.student, high)
    span = np.stack([path.teacher[first], path.teacher[last - 1] + 1])
    student_span = np.stack([low, high])
    number = np.arange(count, dtype=np.int64)
    if rows == "first":
        one = np.ones(count)
        sides = Side(number, span[0], one), Side(number, low, one)
        return Groups(count, *sides, span, student_span)
    width = high - low
    student = Side(np.repeat(number, width), ranges(low, width), np.repeat(1.0 / width, width))
    return Groups(count, _teacher_side(path, first, last, width), student, span, student_span)


def matched(
    groups: Groups, teacher_ids: np.ndarray, student_ids: np.ndarray, table: SymbolTable
) -> np.ndarray:
    """Tell which groups spell the same on both sides, bool [G].

    Args:
        groups: Of these tokens.
        teacher_ids: int64 [Tt].
        student_ids: int64 [Ts].
        table: What the tokens spell, special tokens as symbols of their own.
    """
    lines, bounds = [], []
    for symbols, starts, ids, span in (
        (table.teacher, table.teacher_starts, teacher_ids, groups.teacher_span),
        (table.student, table.student_starts, student_ids, groups.student_span),
    ):
        width = starts[ids + 1] - starts[ids]
        ends = np.concatenate([[0], np.cumsum(width)])
        lines.append(symbols[ranges(starts[ids], width)])
        bounds.append(ends[span])
    (teacher_first, teacher_end), (student_first, student_end) = bounds
    width = student_end - student_first
    same = teacher_end - teacher_first == width
    kept = np.flatnonzero(same)
    width = width[kept]
    one = lines[0][ranges(teacher_first[kept], width)]
    two = lines[1][ranges(student_first[kept], width)]
    wrong = np.repeat(kept, width)[one != two]
    same[wrong] = False
    return same


def ranges(first: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Join the ranges `first[k] .. first[k] + width[k] - 1`.

    Example:
        >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    ends = np.cumsum(width)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(first - (ends - width), width) + np.arange(total, dtype=np.int64)


def _sets(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last student token that each teacher token is paired with."""
    tokens = np.arange(path.teacher[-1] + 1)
    first = np.searchsorted(path.teacher, tokens)
    last = np.searchsorted(path.teacher, tokens, side="right") - 1
    return path.student[first], path.student[last]


def _teacher_side(path: Path, first: np.ndarray, last: np.ndarray, width: np.ndarray) -> Side:
    """The teacher's tokens of every group, from the stretches of the path."""
    length = last - first
    step = ranges(first, length)
    group = np.repeat(np.arange(len(first), dtype=np.int64), length)
    token = path.teacher[step]
    share = 1.0 / np.bincount(path.student)[path.student[step]] / width[group]
    new = np.concatenate([[True], (group[1:] != group[:-1]) | (token[1:] != token[:-1])])
    starts = np.flatnonzero(new)
    return Side(group[starts], token[starts], np.add.reduceat(share, starts))
