"""CDM's map between the likeliest tokens of two models, made afresh for every group.

Among the top-K tokens of both sides: tokens that are the same are paired first, also with a partner
outside the other side's top-K. What is left is paired by distance: of all pairs whose normalised
distance is under theta the nearest is taken, then the nearest of those whose tokens are both still
free, and so on; among equals the better rank of the student's token, then that of the teacher's.
So the map is one-to-one and is the same from either side.

Special tokens and tokens that spell nothing are paired by role alone, never by distance.

Source: Contextual Dynamic Mapping, arXiv:2502.11104, with the faults of the released code left out.
Oracle: tests/oracle/cdm.py.
"""

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from crosstill.align.symbols import SymbolTable, symbol_table


@dataclass(frozen=True, eq=False)
class Mapped:
    """The pairs of every group; P the most that one has.

    Attributes:
        student_ids: int64 [G, P], 0 where there is no pair.
        teacher_ids: int64 [G, P].
        count: int64 [G], pairs of each group; they stand first.
        covered: int64 [G, 2], how many of the student's and of the teacher's top-K have a pair.
    """

    student_ids: np.ndarray
    teacher_ids: np.ndarray
    count: np.ndarray
    covered: np.ndarray


class CandidateMap:
    """Maps the top tokens of both sides onto each other.

    Args:
        student: The student's tokens as strings of symbols; empty ones are paired by role alone.
        teacher: The teacher's.
        shared: int64 [S, 2], one-to-one (student id, teacher id) of tokens that are the same.
        theta: Pairs are made below this distance, strictly.

    Example:
        >>> shared = np.array([[0, 1]])
        >>> maps = CandidateMap(["the", "color"], ["colour", "the"], shared, theta=0.3)
        >>> found = maps(np.array([[0, 1]]), np.array([[0, 1]]))
        >>> found.student_ids.tolist(), found.teacher_ids.tolist()
        ([[0, 1]], [[1, 0]])
    """

    def __init__(self, student: list[str], teacher: list[str], shared: np.ndarray, theta: float):
        self.theta = float(theta)
        self.table: SymbolTable = symbol_table(student, teacher)
        self.student, self.teacher = student, teacher
        self._to_student = np.full(len(teacher), -1, np.int32)
        self._to_teacher = np.full(len(student), -1, np.int32)
        self._to_student[shared[:, 1]] = shared[:, 0]
        self._to_teacher[shared[:, 0]] = shared[:, 1]
        one, two = np.diff(self.table.student_starts), np.diff(self.table.teacher_starts)
        self._barred = (one == 0, two == 0)
        self._limit = _limits(self.theta, int(one.max(initial=0) + two.max(initial=0)))

    def __call__(
        self,
        student_top: np.ndarray,
        teacher_top: np.ndarray,
        distance: np.ndarray | None = None,
    ) -> Mapped:
        """Map the tokens of G groups.

        Args:
            student_top: int64 [G, Ks], each group's likeliest tokens, the likeliest first.
            teacher_top: int64 [G, Kt].
            distance: float32 [G, Ks, Kt] to be used in place of the normalised edit distance
                d / (length + length), if the tokens are compared in another way.
        """
        compiled = _compiled()
        if compiled is None:
            return self.plain(student_top, teacher_top, distance)
        groups, room = len(student_top), student_top.shape[1] + teacher_top.shape[1]
        out = (
            np.empty((groups, room), np.int64),
            np.empty((groups, room), np.int64),
            np.empty(groups, np.int64),
            np.empty((groups, 2), np.int64),
        )
        given = (student_top, teacher_top, self._to_student, self._to_teacher)
        if distance is None:
            t = self.table
            strings = (t.student, t.student_starts, t.student_mask,
                       t.teacher, t.teacher_starts, t.teacher_mask)  # fmt: skip
            widest = compiled.by_strings(*given, strings, t.symbols, self._limit, out)
        else:
            widest = compiled.by_distances(*given, self._barred, distance, self.theta, out)
        return Mapped(out[0][:, :widest], out[1][:, :widest], *out[2:])

    def plain(
        self,
        student_top: np.ndarray,
        teacher_top: np.ndarray,
        distance: np.ndarray | None = None,
    ) -> Mapped:
        """`__call__` without numba: one group after the other."""
        groups, room = len(student_top), student_top.shape[1] + teacher_top.shape[1]
        ids = np.zeros((2, groups, room), np.int64)
        count, covered = np.zeros(groups, np.int64), np.zeros((groups, 2), np.int64)
        for g in range(groups):
            given = None if distance is None else distance[g]
            pairs, covered[g] = self._group(student_top[g], teacher_top[g], given)
            count[g] = len(pairs)
            ids[:, g, : len(pairs)] = np.array(pairs, np.int64).reshape(-1, 2).T
        widest = int(count.max(initial=0))
        return Mapped(ids[0, :, :widest], ids[1, :, :widest], count, covered)

    def _group(
        self, student_top: np.ndarray, teacher_top: np.ndarray, distance: np.ndarray | None
    ) -> tuple[list[tuple[int, int]], tuple[int, int]]:
        """The pairs of one group, and how many top tokens of either side they cover."""
        partner, back = self._to_student[teacher_top], self._to_teacher[student_top]
        pairs = [(int(s), int(t)) for s, t in zip(partner, teacher_top, strict=True) if s >= 0]
        listed = set(teacher_top.tolist())
        pairs += [
            (int(s), int(t))
            for s, t in zip(student_top, back, strict=True)
            if t >= 0 and int(t) not in listed
        ]
        rows = np.flatnonzero((back < 0) & ~self._barred[0][student_top])
        columns = np.flatnonzero((partner < 0) & ~self._barred[1][teacher_top])
        if distance is None:
            near = self._distances(student_top[rows], teacher_top[columns])
        else:
            near = distance[np.ix_(rows, columns)]
        taken = _nearest(near, self.theta)
        pairs += [(int(student_top[rows[a]]), int(teacher_top[columns[b]])) for a, b in taken]
        exact = int((back >= 0).sum()), int((partner >= 0).sum())
        return pairs, (exact[0] + len(taken), exact[1] + len(taken))

    def _distances(self, student_ids: np.ndarray, teacher_ids: np.ndarray) -> np.ndarray:
        if len(student_ids) == 0 or len(teacher_ids) == 0:
            return np.zeros((len(student_ids), len(teacher_ids)))
        one = [self.student[id] for id in student_ids]
        two = [self.teacher[id] for id in teacher_ids]
        length = np.add.outer(list(map(len, one)), list(map(len, two)))
        return cdist(one, two, scorer=Levenshtein.distance, dtype=np.int32, workers=1) / length


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    try:
        from crosstill.align import candidates_compiled
    except ImportError:  # no numba for this Python version or platform
        return None
    return candidates_compiled


def _limits(theta: float, longest: int) -> np.ndarray:
    """int64 [longest + 1]: the largest distance of a pair whose tokens have so many symbols."""
    total = np.maximum(np.arange(longest + 1), 1)
    limit = np.minimum(np.ceil(theta * total) + 1, total).astype(np.int64)
    while (over := limit / total >= theta).any():  # theta is a rounded number, and so is the share
        limit[over] -= 1
    return limit


def _nearest(distance: np.ndarray, theta: float) -> list[tuple[int, int]]:
    """Pairs of rows and columns, one-to-one, the nearest first."""
    distance = distance.astype(np.float64)  # float32 would round theta
    rows, columns = np.nonzero(distance < theta)
    used_rows, used_columns, taken = set(), set(), []
    for k in np.argsort(distance[rows, columns], kind="stable").tolist():
        a, b = int(rows[k]), int(columns[k])
        if a not in used_rows and b not in used_columns:
            used_rows.add(a)
            used_columns.add(b)
            taken.append((a, b))
    return taken
