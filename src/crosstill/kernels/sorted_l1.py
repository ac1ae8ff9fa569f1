"""The L1 distance of two rows of probabilities, each sorted, and its slope: without sorting them.

Let A(x) and B(x) count the entries above x of a student's row and of a teacher's. Of the student's
entries with the value x, the one at rank r meets a teacher's entry that is smaller wherever A > B
around x, and larger wherever A < B. So the entries are counted by buckets of their leading bits
(a non-negative float is ordered as its bits are), and in a bucket where A - B cannot change its
sign every entry has the same slope. Only the buckets that are left are sorted: all of them at once
by their low bits, then each entry into its bucket. Zeros are left out: they stand last on both
sides, where they meet zeros or what the longer side has.
"""

import importlib

import numpy as np

from crosstill.kernels.sharing import can_import, share_rows

COMPILED = "crosstill.kernels.sorted_l1_compiled"


def available() -> bool:
    """Whether `sorted_l1` can run: numba is there for this Python version and platform."""
    return can_import(COMPILED)


def sorted_l1(student: np.ndarray, teacher: np.ndarray, threads: int = 1) -> tuple:
    """Sums |difference| of two rows sorted in descending order, the shorter padded with zeros.

    Args:
        student: float32 [N, Vs], contiguous, every entry from 0 to 1.
        teacher: float32 [N, Vt], the same.
        threads: how many share the rows.

    Returns:
        `(value float64 [N], slope float32 [N, Vs])`. The slope is the derivative by each of the
        student's entries: the sign of its difference to the entry of the same rank, averaged over
        equal entries of a row. An entry whose partner has the very same value may have any slope
        from -1 to 1; it has 0 where both rows are equal.

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> rows = np.array([[0.7, 0.3]], np.float32), np.array([[0.2, 0.5, 0.3]], np.float32)
        >>> value, slope = sorted_l1(*rows)
        >>> value.round(6).tolist(), slope.tolist()
        ([0.4], [[1.0, 0.0]])
    """
    compiled = importlib.import_module(COMPILED)
    value = np.empty(len(student), np.float64)
    slope = np.empty_like(student)

    def run(rows: slice) -> None:
        compiled.rows(student[rows], teacher[rows], value[rows], slope[rows])

    share_rows(run, len(student), threads)
    return value, slope
