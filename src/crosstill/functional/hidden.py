"""Matching hidden states where both models have read the same bytes.

Axes: N pairs of states, D hidden.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype

HIDDEN_DISTANCES = ("mse", "cosine", "normalised_mse")
"""What `hidden_loss` measures between two states."""

TINY = 1e-8
"""Added to a mean square, so that a state of zeros has a finite gradient."""


def hidden_loss(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"], *, distance: str = "mse"
) -> LossSum:
    r"""Compare pairs of states.

    .. math:: \frac1D \|s - t\|^2, \qquad 1 - \frac{s \cdot t}{\|s\|\,\|t\|}, \qquad
              \frac{\|s - t\|^2}{\|t\|^2}

    Args:
        student: states, projected where the sizes differ.
        teacher: states; they get no gradient.
        distance: "mse", "cosine" or "normalised_mse", in the order above.

    Returns:
        The sum over the pairs and their number. No unit.

    Raises:
        ConfigError: unknown distance.

    Numerics: float32 accumulation (float64 stays). 1e-8 is added to each mean square that
    something is divided by; a state of zeros has cosine 0.

    Source: arXiv:2503.20083 (states at the last token of each chunk); its code divides by a mean
    square over the batch, here each pair is divided by its own, so that a batch may be split.
    Oracle: tests/oracle/hidden.py.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> hidden_loss(student, teacher).total, hidden_loss(student, teacher).count
        (tensor(2.5000), tensor(1.))
        >>> hidden_loss(student, teacher, distance="normalised_mse").total
        tensor(1.2500)
    """
    check_hidden_distance(distance)
    dtype = accumulation_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if distance == "cosine":
        each = 1.0 - (student * teacher).mean(1) * _inverse_size(student) * _inverse_size(teacher)
    else:
        each = (student - teacher).square().mean(1)
        if distance == "normalised_mse":
            each = each / (teacher.square().mean(1) + TINY)
    return LossSum(each.sum(), torch.full((), len(each), dtype=dtype, device=each.device))


def check_hidden_distance(distance: str) -> None:
    """Refuse an unknown distance.

    Raises:
        ConfigError: with the names that exist.
    """
    if distance not in HIDDEN_DISTANCES:
        raise ConfigError(
            f"distance must be one of {', '.join(HIDDEN_DISTANCES)}; got {distance!r}"
        )


def _inverse_size(states: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """One over the root of the mean square."""
    return (states.square().mean(1) + TINY).rsqrt()
