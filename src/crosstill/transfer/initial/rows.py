"""Rows made from other rows: averages over lists of tokens.

Axes: Vs rows of the source vocabulary, N lists, D hidden.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstill.align.spellings import Ragged


def averages(
    rows: Float[Tensor, "Vs D"], lists: Ragged, weights: np.ndarray | None = None
) -> Float[Tensor, "N D"]:
    """Average the rows of each list; an empty list gets the mean of all rows.

    Sums are made in float32 at least; a list with one row copies it exactly.

    Args:
        rows: the source's rows.
        lists: offsets int64 [N + 1] and the ids in each list.
        weights: float [Vs], what each row counts for, above 0; None: one each.

    Example:
        >>> rows = torch.tensor([[1.0], [3.0], [8.0]])
        >>> averages(rows, (np.array([0, 2, 3, 3]), np.array([0, 1, 2])))[:, 0].tolist()
        [2.0, 8.0, 4.0]
    """
    work = rows.to(torch.promote_types(rows.dtype, torch.float32))
    offsets, ids = (torch.from_numpy(part).to(rows.device) for part in lists)
    if weights is None:
        found = nn.functional.embedding_bag(ids, work, offsets[:-1], mode="mean")
        found[offsets.diff() == 0] = work.mean(0)
        return found.to(rows.dtype)
    counts = torch.from_numpy(weights).to(work)[:, None]
    share = counts[ids] / _sums(counts, ids, offsets).repeat_interleave(offsets.diff(), 0)
    found = _sums(work, ids, offsets, share[:, 0])
    found[offsets.diff() == 0] = work.mean(0)
    return found.to(rows.dtype)


def _sums(
    rows: Float[Tensor, "Vs D"], ids: Tensor, offsets: Tensor, share: Tensor | None = None
) -> Float[Tensor, "N D"]:
    """The sum of the rows of each list, each row times its share."""
    return nn.functional.embedding_bag(
        ids, rows, offsets[:-1], mode="sum", per_sample_weights=share
    )


def chosen(lists: Ragged, which: np.ndarray) -> Ragged:
    """Some of the lists, in the order of `which` (int64).

    Example:
        >>> offsets, ids = chosen((np.array([0, 2, 2, 3]), np.array([5, 6, 7])), np.array([2, 0]))
        >>> offsets.tolist(), ids.tolist()
        ([0, 1, 3], [7, 5, 6])
    """
    offsets, ids = lists
    sizes = np.diff(offsets)[which]
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    within = np.arange(ends[-1]) - np.repeat(ends[:-1], sizes)
    return ends, ids[np.repeat(offsets[:-1][which], sizes) + within]


def emptied(lists: Ragged, which: np.ndarray) -> Ragged:
    """The same lists, but some of them (int64) empty.

    Example:
        >>> offsets, ids = emptied((np.array([0, 2, 2, 3]), np.array([5, 6, 7])), np.array([0]))
        >>> offsets.tolist(), ids.tolist()
        ([0, 0, 0, 1], [7])
    """
    offsets, ids = lists
    sizes = np.diff(offsets)
    kept = np.ones(len(sizes), bool)
    kept[which] = False
    ends = np.concatenate([[0], np.cumsum(sizes * kept)]).astype(np.int64)
    return ends, ids[np.repeat(kept, sizes)]
