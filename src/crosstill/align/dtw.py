r"""Dynamic time warping of two token sequences, weighted by how unsure the models are.

The cost of pairing teacher token i with student token j is

.. math:: C_{ij} = \mathrm{Levenshtein}(a_i, b_j) \, w^T_i \, w^S_j

and the path is the cheapest one from the first pair to the last that goes on by one token on one
side or on both. Where several are equally cheap, the path is found backwards from the end, a step
on both sides before one on the teacher's and that before one on the student's.

Source: Contextual Dynamic Mapping, arXiv:2502.11104. Oracle: tests/oracle/dtw.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import numpy as np
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from crosstill.errors import AlignmentError

CONSTANT = 1e-6
"""Nats. Entropies that differ by no more than this over a sequence count as one."""


@dataclass(frozen=True, eq=False)
class Path:
    """A way through two sequences.

    Attributes:
        teacher: int64 [L], teacher token of each step, ascending from 0 to Tt - 1.
        student: int64 [L], student token of each step.
        cost: What the steps cost together.
        gap: At most so much cheaper is the cheapest path: 0.0 without a band, and wherever that
            is proven for the path within the band.
    """

    teacher: np.ndarray
    student: np.ndarray
    cost: float
    gap: float


@dataclass(frozen=True, eq=False)
class Distances:
    """The edit distance of every teacher token from every student token, each kind once.

    Attributes:
        unique: [Ut, Us], between the different strings of both sides; uint8 if none of them is
            longer than 255 symbols, as nearly always, and else int32.
        teacher: int64 [Tt], row of each teacher token.
        student: int64 [Ts], column of each student token.
    """

    unique: np.ndarray
    teacher: np.ndarray
    student: np.ndarray


def entropy_weights(entropy: np.ndarray, *, integer: bool = False) -> np.ndarray:
    r"""Weigh the positions of one sequence by the model's entropy there.

    .. math:: w = 3 \, \sigma(4 x - 2) + 3, \quad x = \frac{H - \min H}{\max H - \min H}

    Args:
        entropy: nats [T], of one sequence.
        integer: cut the weights to integers (3, 4 or 5), as the released code does.

    Returns:
        float64 [T], between 3.358 and 5.642. x is 0 everywhere if the entropies do not differ, so
        also for one token.

    Source: arXiv:2502.11104, the weights of the alignment.

    Example:
        >>> entropy_weights(np.array([0.0, 1.0, 2.0])).round(3).tolist()
        [3.358, 4.5, 5.642]
        >>> entropy_weights(np.array([0.0, 1.0, 2.0]), integer=True).tolist()
        [3.0, 4.0, 5.0]
    """
    entropy = np.asarray(entropy, np.float64)
    if len(entropy) == 0:
        return entropy
    low, high = entropy.min(), entropy.max()
    x = (entropy - low) / (high - low) if high - low > CONSTANT else np.zeros_like(entropy)
    weight = 3.0 / (1.0 + np.exp(2.0 - 4.0 * x)) + 3.0
    return np.trunc(weight) if integer else weight


def token_distances(teacher: Sequence[str], student: Sequence[str]) -> Distances:
    """Take the edit distances between two sequences of strings.

    Example:
        >>> token_distances(["ab", "c", "ab"], ["abc"]).unique.tolist()
        [[1], [2]]
    """
    rows, columns = _numbered(teacher), _numbered(student)
    longest = max(map(len, [*rows[0], *columns[0]]), default=0)
    dtype = np.uint8 if longest <= np.iinfo(np.uint8).max else np.int32  # small: looked up T x T
    unique = cdist(rows[0], columns[0], scorer=Levenshtein.distance, dtype=dtype, workers=1)
    return Distances(unique, rows[1], columns[1])


def dtw_path(
    distances: Distances,
    teacher_weight: np.ndarray,
    student_weight: np.ndarray,
    *,
    window: tuple[np.ndarray, np.ndarray] | None = None,
) -> Path:
    """Find the cheapest path.

    Args:
        distances: of the two sequences, from `token_distances`.
        teacher_weight: float [Tt], not negative.
        student_weight: float [Ts].
        window: for each teacher token the first student token it may be paired with and the one
            after the last, from `byte_window`; None allows all, and the path is then exact.

    Raises:
        AlignmentError: one side has no token, or no path leads through the window.

    Numerics: float64; the products and sums are taken in the order of the formulas.
    """
    rows, columns = len(distances.teacher), len(distances.student)
    if rows == 0 or columns == 0:
        raise AlignmentError(
            f"expected tokens on both sides, got {rows} of the teacher and {columns} of the "
            "student: there is nothing to align. Leave that row out."
        )
    if window is None:
        low, high = np.zeros(rows, np.int64), np.full(rows, columns, np.int64)
    else:
        low, high = _checked(*window, rows, columns)
    given = (
        distances.unique,
        distances.teacher,
        distances.student,
        np.ascontiguousarray(teacher_weight, np.float64),
        np.ascontiguousarray(student_weight, np.float64),
    )
    compiled = _compiled()
    if compiled:
        teacher, student, cost = compiled.path(*given, low, high)
    else:
        teacher, student, cost = path_numpy(*given, low, high)
    whole = window is None or (int(low.max()) == 0 and int(high.min()) == columns)
    return Path(teacher, student, cost, 0.0 if whole else _gap(cost, *given))


def byte_window(
    teacher_ends: np.ndarray, student_ends: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Allow pairs within some tokens of where both sides have spelled the same number of bytes.

    Args:
        teacher_ends: int [Tt], bytes spelled up to and with each teacher token.
        student_ends: int [Ts].
        width: tokens on either side of the diagonal, at least 1.

    Returns:
        `(low, high)`, int64 [Tt]: the half-open range of student tokens for each teacher token.
        Ranges overlap, so there is always a path.

    Example:
        >>> low, high = byte_window(np.array([1, 2, 3, 4]), np.array([2, 4]), 1)
        >>> low.tolist(), high.tolist()
        ([0, 0, 0, 0], [2, 2, 2, 2])
    """
    columns = len(student_ends)
    centre = np.minimum(np.searchsorted(student_ends, teacher_ends, side="left"), columns - 1)
    before = np.concatenate([[0], centre[:-1]])
    low = np.maximum(before - width, 0).astype(np.int64)
    high = np.minimum(centre + width + 1, columns).astype(np.int64)
    low[0], high[-1] = 0, columns
    return low, high


def path_numpy(
    unique: np.ndarray,
    teacher: np.ndarray,
    student: np.ndarray,
    teacher_weight: np.ndarray,
    student_weight: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """`dtw_compiled.path` without numba: one antidiagonal after the other."""
    rows, columns = len(teacher), len(student)
    cost = unique[teacher][:, student] * teacher_weight[:, None] * student_weight
    column = np.arange(columns)
    cost[(column < low[:, None]) | (column >= high[:, None])] = np.inf
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = before + cost[i, j]
    steps, i, j = [], rows, columns
    while i > 0:
        steps.append((i - 1, j - 1))
        choices = (total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
        move = int(np.argmin(choices))
        i, j = i - (move != 2), j - (move != 1)
    path = np.array(steps[::-1], np.int64)
    return path[:, 0], path[:, 1], float(total[rows, columns])


def _checked(
    low: np.ndarray, high: np.ndarray, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """The window, if it leads from the first pair to the last: the loops read where it points."""
    if not (
        low.shape == high.shape == (rows,)
        and (low[0], high[-1]) == (0, columns)
        and bool((low < high).all())
        and bool((np.diff(low) >= 0).all() and (np.diff(high) >= 0).all())
        and bool((low[1:] <= high[:-1]).all())
    ):
        raise AlignmentError(
            f"expected a window of {rows} ranges from student token 0 to {columns}, none of them "
            "empty, behind the one before or away from it, got another. Make it with `byte_window`."
        )
    return low.astype(np.int64, copy=False), high.astype(np.int64, copy=False)


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    try:
        from crosstill.align import dtw_compiled
    except ImportError:  # no numba for this Python version or platform
        return None
    return dtw_compiled


def _numbered(strings: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different strings in order of first appearance, and the number of each."""
    number: dict[str, int] = {}
    index = [number.setdefault(text, len(number)) for text in strings]
    return list(number), np.array(index, np.int64)


def _gap(
    cost: float,
    unique: np.ndarray,
    teacher: np.ndarray,
    student: np.ndarray,
    teacher_weight: np.ndarray,
    student_weight: np.ndarray,
) -> float:
    """Cost above a bound that no path is below: every token is paired with something."""
    lightest = [np.full(size, np.inf) for size in unique.shape]
    np.minimum.at(lightest[0], teacher, teacher_weight)
    np.minimum.at(lightest[1], student, student_weight)
    rows = ((unique * lightest[1]).min(1)[teacher] * teacher_weight).sum()
    columns = ((unique * lightest[0][:, None]).min(0)[student] * student_weight).sum()
    return max(0.0, float(cost - max(rows, columns)))
