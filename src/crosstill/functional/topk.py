"""The largest entries of long rows, exactly, and faster than a sort of the whole row.

Axes: N rows, V vocabulary, K entries.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_WIDTH = 32
"""Columns in a block: its largest entry is found by one pass, at the speed of reading."""


def top_ids(logits: Float[Tensor, "N V"], k: int) -> Int64[Tensor, "N K"]:
    """Find the K largest entries of every row, the largest first, the lower id first among equals.

    The K largest entries lie in the K blocks with the largest maxima; so only these are searched.

    Args:
        logits: of any floating dtype, without NaN.
        k: at least 1; K is the smaller of it and V.

    Numerics: exact. Where several equal entries compete for the last place, any may get it.

    Example:
        >>> top_ids(torch.tensor([[1.0, 5.0, 3.0, 5.0]]), 3)
        tensor([[1, 3, 2]])
    """
    return ranked(*top_values(logits, k))


def top_values(
    logits: Float[Tensor, "N V"], k: int
) -> tuple[Float[Tensor, "N K"], Int64[Tensor, "N K"]]:
    """As `top_ids`, the values too, in the order in which they were found.

    Example:
        >>> top_values(torch.tensor([[1.0, 5.0]]), 1)
        (tensor([[5.]]), tensor([[1]]))
    """
    rows, size = logits.shape
    k = min(k, size)
    blocks = size // _WIDTH
    if blocks <= 2 * k:
        values, ids = logits.topk(k, dim=1)
        return values, ids
    # Block c holds the columns c, c + blocks, c + 2 blocks ...: maxima of whole vectors.
    cut = blocks * _WIDTH
    largest = logits[:, :cut].unflatten(1, (_WIDTH, blocks)).amax(1)
    winner = largest.topk(k, dim=1, sorted=False).indices
    step = torch.arange(0, cut, blocks, device=logits.device)
    candidate = (winner.unsqueeze(1) + step.unsqueeze(1)).flatten(1)
    rest = torch.arange(cut, size, device=logits.device).expand(rows, -1)
    candidate = torch.cat([candidate, rest], 1)
    values, at = logits.gather(1, candidate).topk(k, dim=1, sorted=False)
    return values, candidate.gather(1, at)


def ranked(values: Float[Tensor, "N K"], ids: Int64[Tensor, "N K"]) -> Int64[Tensor, "N K"]:
    """Put the ids of each row in order: the largest value first, the lower id among equals.

    Example:
        >>> ranked(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[4, 9, 2]]))
        tensor([[2, 9, 4]])
    """
    ids, order = ids.sort(1)
    ranked = values.gather(1, order).sort(dim=1, descending=True, stable=True).indices
    return ids.gather(1, ranked)
