"""How the predictions of several models become one: means of probabilities and of their logarithms.

Axes: N members, S columns (the tokens that all members can write). Rows are logits, raw or
normalised; a column that no member may write is -inf in all of them.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.numerics import accumulation_dtype

Mix = Literal["probabilities", "log_probabilities"]
MIXES: tuple[Mix, ...] = get_args(Mix)


@torch.no_grad()
def mixed_logprobs(
    logits: Sequence[Float[Tensor, "*rows S"]], weights: Sequence[float], mix: Mix
) -> Float[Tensor, "*rows S"]:
    r"""Mix the distributions of several models over the same columns.

    With `p_i` the softmax of the i-th logits and weights `w_i` that add up to one:

    - `probabilities`: `log sum_i w_i p_i`, the arithmetic mean.
    - `log_probabilities`: `log_softmax(sum_i w_i log p_i)`, the geometric mean, renormalised.

    Args:
        logits: one tensor a member, of any floating dtype; nothing is changed in place.
        weights: one a member, none negative, of sum one. A member with weight zero counts nothing,
            whatever its logits are.
        mix: how.

    Returns:
        Nats, float32 (float64 for float64 logits), of sum one where any column can be written.

    Numerics: a running `logaddexp`, so that tokens far below the smallest float keep their
    log-probability; besides the result one buffer of its size, however many members there are.
    Oracle: tests/oracle/ensemble.py.

    Example:
        >>> rows = [torch.tensor([0.0, 0.0]), torch.tensor([0.0, -torch.inf])]
        >>> mixed_logprobs(rows, [0.5, 0.5], "probabilities").exp()
        tensor([0.7500, 0.2500])
        >>> mixed_logprobs(rows, [0.5, 0.5], "log_probabilities").exp()
        tensor([1., 0.])
    """
    parts = [(row, weight) for row, weight in zip(logits, weights, strict=True) if weight > 0]
    if len(parts) == 1:
        row = parts[0][0]
        return row.to(accumulation_dtype(row)).log_softmax(-1)
    if mix == "log_probabilities":
        # The normalisers are constants of a row: the last softmax takes them out.
        total = _wide(parts[0][0]) * parts[0][1]
        for row, weight in parts[1:]:
            total.add_(_wide(row), alpha=weight)
        return total.log_softmax(-1)
    total = _normalised(*parts[0])
    for row, weight in parts[1:]:
        torch.logaddexp(total, _normalised(row, weight), out=total)
    return total


@torch.no_grad()
def mixed_token_logprobs(
    logits: Sequence[Float[Tensor, "R S"]],
    weights: Sequence[float],
    mix: Mix,
    target: Int64[Tensor, " R"],
) -> Float[Tensor, " R"]:
    """Compute the log-probability that the mixture gives to one column of each row.

    The same as picking it from `mixed_logprobs`, without the mixture of the other columns where
    they are not needed.

    Returns:
        Nats, float32 (float64 for float64 logits).

    Example:
        >>> rows = [torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])]
        >>> mixed_token_logprobs(rows, [0.5, 0.5], "probabilities", torch.tensor([0])).exp()
        tensor([0.7500])
    """
    index = target[:, None]
    if mix == "log_probabilities":
        return mixed_logprobs(logits, weights, mix).gather(-1, index)[:, 0]
    found = []
    for row, weight in zip(logits, weights, strict=True):
        if weight > 0:
            row = _wide(row)
            chosen = row.gather(-1, index)[:, 0] - row.logsumexp(-1)
            found.append(chosen + math.log(weight))
    return torch.stack(found).logsumexp(0) if len(found) > 1 else found[0]


def checked_weights(weights: Sequence[float] | None, members: int) -> tuple[float, ...]:
    """Weights of sum one; equal ones where none are given.

    Raises:
        ConfigError: not one weight a member, or a weight that is negative or no number, or nothing
            but zeros.

    Example:
        >>> checked_weights([3, 1], 2), checked_weights(None, 2)
        ((0.75, 0.25), (0.5, 0.5))
    """
    given = [1.0] * members if weights is None else [float(weight) for weight in weights]
    if len(given) != members:
        raise ConfigError(f"expected one weight for each of {members} models, got {len(given)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise ConfigError(
            f"expected weights of at least 0, one of them above, got {given}: a weight is the "
            f"model's share of the vote"
        )
    return tuple(weight / sum(given) for weight in given)


def checked_mix(mix: str) -> Mix:
    """The mix of this name.

    Raises:
        ConfigError: there is none.
    """
    for known in MIXES:
        if mix == known:
            return known
    raise ConfigError(f"expected a mix out of {', '.join(MIXES)}, got {mix!r}")


def _wide(row: Tensor) -> Tensor:
    return row.to(accumulation_dtype(row))


def _normalised(row: Tensor, weight: float) -> Tensor:
    """Log-probabilities times a weight, in a buffer of their own."""
    row = _wide(row)
    return row - (row.logsumexp(-1, keepdim=True) - math.log(weight))
