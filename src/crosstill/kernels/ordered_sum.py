"""Cumulative sums of rows in a given order, in float64, without a copy of the rows in it."""

import importlib

import numpy as np

from crosstill.kernels.sharing import can_import, share_rows

COMPILED = "crosstill.kernels.ordered_sum_compiled"


def available() -> bool:
    """Whether `ordered_sum` can run: numba is there for this Python version and platform."""
    return can_import(COMPILED)


def ordered_sum(rows: np.ndarray, order: np.ndarray, threads: int = 1) -> np.ndarray:
    """Sum each row's entries in an order, from the left.

    Args:
        rows: float32 [N, V], contiguous.
        order: int32 [K], columns below V.
        threads: how many share the rows.

    Returns:
        float64 [N, K + 1]: entry k is the sum of the first k entries.

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> rows, order = np.array([[1, 2, 4]], np.float32), np.array([2, 0], np.int32)
        >>> ordered_sum(rows, order).tolist()
        [[0.0, 4.0, 5.0]]
    """
    compiled = importlib.import_module(COMPILED)
    out = np.empty((len(rows), len(order) + 1), np.float64)
    share_rows(lambda job: compiled.ordered_sum(rows[job], order, out[job]), len(rows), threads)
    return out


def span_sums(
    cumulative: np.ndarray,
    row: np.ndarray,
    bounds: np.ndarray,
    scale: np.ndarray,
    out: np.ndarray,
    threads: int = 1,
) -> None:
    """Take the sums of spans that follow each other from cumulative sums, times a number a row.

    Args:
        cumulative: float64 [N, K + 1], from `ordered_sum`.
        row: int64 [S], which rows.
        bounds: int64 [C + 1], ascending, where the spans begin and the last ends.
        scale: float64 [S].
        out: float64 [S, C], gets the sums.
        threads: how many share the rows.

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> sums, one, out = np.array([[0.0, 4.0, 5.0]]), np.array([1.0]), np.empty((1, 2))
        >>> span_sums(sums, np.array([0]), np.array([0, 1, 2]), one, out)
        >>> out.tolist()
        [[4.0, 1.0]]
    """
    compiled = importlib.import_module(COMPILED)
    share_rows(
        lambda job: compiled.span_sums(cumulative, row[job], bounds, scale[job], out[job]),
        len(row),
        threads,
    )
