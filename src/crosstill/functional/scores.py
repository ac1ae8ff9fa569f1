"""From logits to the log-probabilities that objectives read.

Axes: B sequences, T tokens, V vocabulary. Row t of the logits predicts token t + 1.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.functional.numerics import accumulation_dtype


def row_logprobs(
    logits: Float[Tensor, "*rows V"], target: Int64[Tensor, "*rows"]
) -> Float[Tensor, "*rows"]:
    """Compute the log-probability that each row of logits gives to its target.

    Args:
        logits: raw, of any floating dtype.
        target: an id below V for each row.

    Returns:
        Nats, float32 (float64 for float64 logits).

    Example:
        >>> row_logprobs(torch.zeros(1, 4), torch.tensor([2]))
        tensor([-1.3863])
    """
    logits = logits.to(accumulation_dtype(logits))
    chosen = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(logits, -1)


def row_logmass(
    logits: Float[Tensor, "*rows V"], boundary_mask: Bool[Tensor, " V"]
) -> Float[Tensor, "*rows"]:
    """Compute the log of the probability mass that each row gives to the boundary tokens.

    Returns:
        Nats, float32 (float64 for float64 logits); `-inf` with zero gradient where the mass is
        zero. Exact also where the mass is far below the smallest float.

    Example:
        >>> row_logmass(torch.zeros(1, 4), torch.tensor([True, False, False, False]))
        tensor([-1.3863])
    """
    logits = logits.to(accumulation_dtype(logits))
    nothing = ((logits == -torch.inf) | ~boundary_mask).all(-1)
    # A row of nothing but -inf has a NaN gradient, even where that gradient is then unused.
    inside = logits.masked_fill(~boundary_mask, -torch.inf)
    inside = inside.masked_fill(nothing.unsqueeze(-1), 0.0)
    mass = torch.logsumexp(inside, -1) - torch.logsumexp(logits, -1)
    return mass.masked_fill(nothing, -torch.inf)


def token_logprobs(
    logits: Float[Tensor, "B T V"],
    input_ids: Int64[Tensor, "B T"],
    *,
    vocab_size: int | None = None,
) -> Float[Tensor, "B T"]:
    r"""Compute :math:`\log p(x_t \mid x_{<t})` for every token of every row.

    Args:
        logits: row t predicts token t + 1.
        input_ids: the tokens themselves; the shift by one is made here.
        vocab_size: number of ids the tokenizer knows. Columns beyond it (a model's output matrix
            is often padded) are cut off before the softmax, so they get no probability.

    Returns:
        Nats, float32 (float64 for float64 logits). 0.0 at position 0, which nothing predicts.

    Example:
        >>> token_logprobs(torch.zeros(1, 3, 5), torch.tensor([[1, 2, 3]]), vocab_size=4)
        tensor([[ 0.0000, -1.3863, -1.3863]])
    """
    scores = row_logprobs(logits[:, :-1, :vocab_size], input_ids[:, 1:])
    return torch.cat([scores.new_zeros(input_ids.shape[0], 1), scores], 1)[:, : input_ids.shape[1]]


def boundary_logmass(
    logits: Float[Tensor, "B T V"],
    boundary_mask: Bool[Tensor, " mask"],
    vocab_size: int | None = None,
) -> Float[Tensor, "B T"]:
    """Compute the log of the mass of boundary tokens after each token.

    Args:
        logits: row t predicts what follows token t.
        boundary_mask: True for ids that begin with a boundary byte or are special; as long as
            `vocab_size` or longer.
        vocab_size: as in `token_logprobs`.

    Returns:
        Nats, float32 (float64 for float64 logits).

    Source: arXiv:2503.20083, the debiased chunk likelihood.

    Example:
        >>> boundary_logmass(torch.zeros(1, 2, 4), torch.tensor([True, True, False, False]))
        tensor([[-0.6931, -0.6931]])
    """
    kept = logits[..., :vocab_size]
    return row_logmass(kept, boundary_mask[: kept.shape[-1]])
