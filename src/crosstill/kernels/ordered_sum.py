"""Cumulative sums of rows in a given order, in float64, without a copy of the rows in it."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np

COMPILED = "crosstill.kernels.ordered_sum_compiled"


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether `ordered_sum` can run: numba is there for this Python version and platform."""
    try:
        importlib.import_module(COMPILED)
    except ImportError:
        return False
    return True


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
    share = -(-len(rows) // max(threads, 1)) or 1
    jobs = [slice(start, start + share) for start in range(0, len(rows), share)]
    if len(jobs) < 2:
        for job in jobs:
            compiled.ordered_sum(rows[job], order, out[job])
    else:
        # A pool for each call: one that outlived a fork would wait for threads that are gone.
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: compiled.ordered_sum(rows[job], order, out[job]), jobs))
    return out
