r"""Divergences between two Bernoulli variables, given by the logarithm of "yes".

ALM asks of each chunk only "this chunk, or anything else". With the teacher's probability
:math:`p = e^u` and the student's :math:`q = e^v`, the divergence of :math:`(p, 1-p)` from
:math:`(q, 1-q)` is a lower bound of the divergence between the whole distributions (data
processing), and zero just where p = q.

Every function takes :math:`u, v < 0` in nats and gives values that are zero where u = v, never
negative beyond rounding, and finite with finite gradients for :math:`u, v` in [-1e4, -1e-6].
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.numerics import (
    EPSILON,
    NEAR,
    expm1_residual,
    log1mexp,
    log1p_residual,
)


def binary_kl(u: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`p \log\frac{p}{q} + (1-p) \log\frac{1-p}{1-q}` with p = e^u, q = e^v.

    Not the cross entropy: the teacher's own entropy is taken off, so equality gives 0.

    Where p and q are close, both terms nearly cancel. There the same number is computed as
    :math:`p\,(e^t - 1 - t) + (1-p)\,(x - \log(1+x))` with :math:`t = v - u` and
    :math:`x = (p-q)/(1-p)`, a sum of two terms that are never negative.

    Source: arXiv:2503.20083, section 3; f(p || q) = p log(p / q).

    Example:
        >>> p, q = torch.tensor(0.5), torch.tensor(0.25)
        >>> binary_kl(p.log(), q.log())
        tensor(0.1438)
    """
    p, rest = torch.exp(u), -torch.expm1(u)
    t = v - u
    plain = -p * t + rest * (log1mexp(u) - log1mexp(v))
    small_t = t.clamp(-2 * NEAR, 2 * NEAR)
    x = (-p * torch.expm1(small_t) / rest).clamp(-2 * NEAR, 2 * NEAR)
    close = p * expm1_residual(small_t) + rest * log1p_residual(x)
    return torch.where((t.abs() <= NEAR) & (x.abs() <= NEAR), close, plain)


def binary_reverse_kl(
    u: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`q \log\frac{q}{p} + (1-q) \log\frac{1-q}{1-p}`: the student's view.

    Example:
        >>> p, q = torch.tensor(0.5), torch.tensor(0.25)
        >>> binary_reverse_kl(p.log(), q.log())
        tensor(0.1308)
    """
    return binary_kl(v, u)


def binary_total_variation(
    u: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`|p - q|`, the total variation distance of the two Bernoulli variables.

    This is half of :math:`|p - q| + |(1-p) - (1-q)|`. The gradient is 0 where p = q.

    Example:
        >>> p, q = torch.tensor(0.5), torch.tensor(0.25)
        >>> binary_total_variation(p.log(), q.log())
        tensor(0.2500)
    """
    return torch.exp(torch.maximum(u, v)) * -torch.expm1(-(u - v).abs())


def limit_kl(a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`(a - b) + a \log(b / a)`, the limit of T times `binary_kl` for large T.

    With :math:`u = a/T` and :math:`v = b/T`: :math:`1 - p \to -a/T`, and the first order in 1/T
    is left. With :math:`r = (b-a)/a` it equals :math:`-a\,(r - \log(1+r))`, which is what is
    computed where a and b are close.

    Source: arXiv:2503.20083, appendix A.2.

    Example:
        >>> limit_kl(torch.tensor(-1.0), torch.tensor(-2.0))
        tensor(0.3069)
    """
    plain = (a - b) + a * (torch.log(-b) - torch.log(-a))
    r = ((b - a) / a).clamp(-2 * NEAR, 2 * NEAR)
    return torch.where(r.abs() <= NEAR, -a * log1p_residual(r), plain)


def limit_reverse_kl(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`(b - a) + b \log(a / b)`, the limit of T times `binary_reverse_kl`.

    The reverse divergence is the forward one with its arguments exchanged, for every T, and so
    is the limit.

    Example:
        >>> limit_reverse_kl(torch.tensor(-1.0), torch.tensor(-2.0))
        tensor(0.3863)
    """
    return limit_kl(b, a)


def limit_total_variation(
    a: Float[Tensor, "*shape"], b: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    r"""Compute :math:`|a - b|`, the limit of T times `binary_total_variation` for large T.

    Example:
        >>> limit_total_variation(torch.tensor(-1.0), torch.tensor(-3.0))
        tensor(2.)
    """
    return (a - b).abs()


_Divergence = Callable[[Tensor, Tensor], Tensor]
_AT_TEMPERATURE: dict[str, _Divergence] = {
    "kl": binary_kl,
    "reverse_kl": binary_reverse_kl,
    "total_variation": binary_total_variation,
}
_AT_INFINITY: dict[str, _Divergence] = {
    "kl": limit_kl,
    "reverse_kl": limit_reverse_kl,
    "total_variation": limit_total_variation,
}

DIVERGENCES: tuple[str, ...] = tuple(_AT_TEMPERATURE)
"""The names `binarised_divergence` knows."""


def binarised_divergence(
    teacher: Float[Tensor, "*shape"],
    student: Float[Tensor, "*shape"],
    *,
    divergence: str = "kl",
    temperature: float = 100.0,
) -> Float[Tensor, "*shape"]:
    r"""Compare two log-likelihoods of the same event by a binarised f-divergence.

    .. math:: D\big(p^{1/T}, 1 - p^{1/T} \,\|\, q^{1/T}, 1 - q^{1/T}\big)

    Args:
        teacher: nats, at most 0.
        student: nats, at most 0.
        divergence: one of `DIVERGENCES`.
        temperature: T > 0. With `math.inf` the result is the limit of T times the divergence,
            which has the scale of nats; at a finite T the divergence is not multiplied by T.

    Raises:
        ConfigError: the divergence has no such name, or the temperature is not above 0.

    Numerics: `EPSILON` is subtracted from both sides after the division by T, so that
    probability one has a finite value and gradient.

    Example:
        >>> a, b = torch.tensor([-1.0]), torch.tensor([-2.0])
        >>> binarised_divergence(a, b, divergence="total_variation", temperature=math.inf)
        tensor([1.])
        >>> binarised_divergence(a, b, divergence="total_variation", temperature=1e4) * 1e4
        tensor([0.9998])
    """
    check_divergence(divergence, temperature)
    if math.isinf(temperature):
        return _AT_INFINITY[divergence](teacher - EPSILON, student - EPSILON)
    tempered = (teacher / temperature - EPSILON, student / temperature - EPSILON)
    return _AT_TEMPERATURE[divergence](*tempered)


def check_divergence(divergence: str, temperature: float) -> None:
    """Refuse an unknown divergence and a temperature that is not above zero.

    Raises:
        ConfigError: with the names that exist, or the temperature that came.
    """
    if divergence not in _AT_TEMPERATURE:
        raise ConfigError(f"divergence must be one of {', '.join(DIVERGENCES)}; got {divergence!r}")
    if not temperature > 0:
        raise ConfigError(
            f"temperature must be above 0 (inf gives the limit form); got {temperature}"
        )
