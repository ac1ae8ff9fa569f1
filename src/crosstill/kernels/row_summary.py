"""Of every row of logits the largest entries, the log-sum-exp and the entropy, read once.

A row is read from memory once and a second time from the processor's cache: first for the largest
entry of every block, then for the sums of exponentials. The K largest entries are looked for only
in the blocks whose largest entry is large enough.
"""

import importlib

import numpy as np

from crosstill.kernels.sharing import can_import, share_rows

COMPILED = "crosstill.kernels.row_summary_compiled"


def available() -> bool:
    """Whether `row_summary` can run: numba is there for this Python version and platform."""
    return can_import(COMPILED)


def row_summary(logits: np.ndarray, k: int, threads: int = 1) -> tuple:
    """Find each row's largest entries, its log-sum-exp and its entropy.

    Args:
        logits: float32 [N, V], contiguous, V at least 1.
        k: at least 1; K is the smaller of it and V.
        threads: how many share the rows.

    Returns:
        `(ids int64 [N, K], norm float64 [N], entropy float64 [N])`. Ids go from the largest entry
        to the smallest, the lower id first among equals, and a NaN counts as the largest. Norm and
        entropy are in nats, with a relative error below 1e-6 where the exact entropy is above 0.1;
        an entry more than 83 below its row's best, `-inf` included, counts as that. Both are NaN
        where a row has a NaN or no finite largest entry.

    Raises:
        ImportError: numba is missing (see `available`).

    Example:
        >>> ids, norm, entropy = row_summary(np.zeros((1, 4), np.float32), 2)
        >>> ids.tolist(), norm.round(4).tolist(), entropy.round(4).tolist()
        ([[0, 1]], [1.3863], [1.3863])
    """
    compiled = importlib.import_module(COMPILED)
    count = len(logits)
    ids = np.empty((count, min(k, logits.shape[1])), np.int64)
    norm, entropy = np.empty(count), np.empty(count)

    def run(rows: slice) -> None:
        compiled.rows(logits[rows], ids[rows], norm[rows], entropy[rows])

    share_rows(run, count, threads)
    return ids, norm, entropy
