"""Small pieces of arithmetic that stay finite, in value and in gradient, on the whole domain.

Log-probabilities are in nats and at most 0. Sums are made in float32 at least.
"""

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6
"""Subtracted from a tempered log-probability, so that probability one stays inside the domain."""

FLOOR = -1e4
"""Nats. A log-probability below it, `-inf` included, counts as this and gets no gradient."""

NEAR = 0.1
"""Arguments up to this size are given to the residual series, larger ones to the plain formula."""


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype in which values of these tensors are summed: float32, or float64.

    Example:
        >>> accumulation_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def log1mexp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`\log(1 - e^x)` for :math:`x < 0`.

    Args:
        x: nats, below zero.

    Returns:
        Nats. Each branch is fed arguments it can bear, so that the branch not taken adds no NaN
        to the gradient.

    Source: Maechler, "Accurately Computing log(1 - exp(-|a|))", 2012.

    Example:
        >>> log1mexp(torch.tensor([-1e-6, -0.6931472, -50.0]))
        tensor([-1.3816e+01, -6.9315e-01, -1.9287e-22])
    """
    near_zero = x > -0.6931471805599453
    close = torch.log(-torch.expm1(torch.where(near_zero, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near_zero, -1.0, x)))
    return torch.where(near_zero, close, far)


def expm1_residual(t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`e^t - 1 - t` to full relative precision for :math:`|t| \le 0.1`.

    The Taylor series to the eleventh power; the plain formula would lose all digits near 0.

    Example:
        >>> expm1_residual(torch.tensor([0.0, 1e-4]))
        tensor([0.0000e+00, 5.0002e-09])
    """
    series = torch.ones_like(t)
    for power in range(11, 2, -1):
        series = 1.0 + series * t / power
    return 0.5 * t * t * series


def log1p_residual(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`x - \log(1 + x)` to full relative precision for :math:`|x| \le 0.1`.

    With :math:`s = x / (2 + x)`, the logarithm is :math:`2 \operatorname{artanh} s`, whose odd
    series converges ten times faster than that of the logarithm itself.

    Example:
        >>> log1p_residual(torch.tensor([0.0, 1e-4]))
        tensor([0.0000e+00, 4.9997e-09])
    """
    s = x / (2.0 + x)
    square = s * s
    series = torch.zeros_like(x)
    for power in (11, 9, 7, 5, 3):
        series = series * square + 1.0 / power
    return x * x / (2.0 + x) - 2.0 * s * square * series
