"""Sums of rows over classes of columns, in float64, without a copy of the rows in their order."""

import importlib

import numpy as np

from crosstill.kernels.sharing import can_import, share_rows

COMPILED = "crosstill.kernels.class_sums_compiled"


def available() -> bool:
    """Whether `class_sums` can run: numba is there for this Python version and platform."""
    return can_import(COMPILED)


def class_sums(
    rows: np.ndarray, members: np.ndarray, start: np.ndarray, threads: int = 1
) -> np.ndarray:
    """Sum each row's entries over classes of columns.

    Args:
        rows: float32 [N, V], contiguous.
        members: int64 [K], columns below V, sorted by class.
        start: int64 [C + 1], where each class begins in `members`, and K.
        threads: how many share the rows.

    Returns:
        float32 [N, C], summed in float64.

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> rows = np.array([[1, 2, 4]], np.float32)
        >>> class_sums(rows, np.array([1, 0, 2]), np.array([0, 1, 1, 3])).tolist()
        [[2.0, 0.0, 5.0]]
    """
    compiled = importlib.import_module(COMPILED)
    out = np.empty((len(rows), len(start) - 1), np.float32)
    share_rows(
        lambda job: compiled.class_sums(rows[job], members, start, out[job]), len(rows), threads
    )
    return out


def class_gradient(
    probability: np.ndarray,
    by_class: np.ndarray,
    of: np.ndarray,
    mean: np.ndarray,
    threads: int = 1,
) -> np.ndarray:
    """Take the gradient by class sums of a softmax back to its logits.

    Args:
        probability: float32 [N, V], contiguous.
        by_class: float32 [N, C], the gradient by the sum of each class.
        of: int64 [V], the class of each column, below C.
        mean: float32 [N], of the gradient, under the softmax.
        threads: how many share the rows.

    Returns:
        float32 [N, V].

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> half, zero = np.full((1, 2), 0.5, np.float32), np.zeros(1, np.float32)
        >>> class_gradient(half, np.array([[4, 6]], np.float32), np.array([1, 1]), zero).tolist()
        [[3.0, 3.0]]
    """
    compiled = importlib.import_module(COMPILED)
    out = np.empty_like(probability)
    share_rows(
        lambda job: compiled.class_gradient(
            probability[job], by_class[job], of, mean[job], out[job]
        ),
        len(out),
        threads,
    )
    return out
