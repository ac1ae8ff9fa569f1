r"""Divergences between two models' next-token distributions over one vocabulary.

Axes: N rows, V vocabulary. p is the teacher's distribution, q the student's, both the softmax of
the logits divided by the temperature :math:`\tau`. Every function sums over the rows.

The convention for the temperature: the sum is multiplied by :math:`\tau^2` (by :math:`\tau` for
the total variation, which is of first order in the logits' difference), so that the gradient has
the same scale at every temperature.

Numerics of all: float32 at least, float64 stays; the teacher gets no gradient; log-probabilities
below -1e4 nats, `-inf` among them, count as -1e4 and get no gradient.
Oracle of all: tests/oracle/classical.py.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import NEAR, log1p_residual
from crosstill.functional.rowsum import (
    check_rows,
    check_temperature,
    log_distribution,
    row_kl,
    sum_rows,
)

LogDistributions = Float[Tensor, "n V"]
SCALES = ("continuous", "gkd")
"""How `jsd` is scaled."""

SMALL_SHARE = 0.05
"""Up to this share of the other side, a divergence from the mixture is computed with more care."""


def forward_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum :math:`\tau^2 \sum_v p_v \log\frac{p_v}{q_v}` over the rows.

    Args:
        student_logits: raw logits; `-inf` is allowed.
        teacher_logits: raw logits over the same vocabulary.
        temperature: tau > 0.

    Returns:
        Nats, and the number of rows.

    Raises:
        ConfigError: shapes that do not fit, or a temperature out of range.

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> forward_kl(student, teacher).total
        tensor(0.1308)
    """
    return _compare(row_kl, student_logits, teacher_logits, temperature)


def reverse_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum :math:`\tau^2 \sum_v q_v \log\frac{q_v}{p_v}` over the rows.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        temperature: as in `forward_kl`.

    Raises:
        ConfigError: as `forward_kl`.

    Source: Gu, Dong, Wei, Huang 2023 (MiniLLM), arXiv:2306.08543, here per token.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> reverse_kl(student, teacher).total
        tensor(0.1438)
    """
    return _compare(lambda p, q: row_kl(q, p), student_logits, teacher_logits, temperature)


def jsd(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    beta: float = 0.5,
    scale: str = "continuous",
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the generalised Jensen-Shannon divergence over the rows.

    With :math:`m = \beta p + (1-\beta) q`:

    .. math:: J_\beta = \beta\, KL(p \| m) + (1-\beta)\, KL(q \| m)

    "gkd" gives :math:`J_\beta` itself, which vanishes as beta goes to 0 or 1; by convention it is
    the forward KL at 0 and the reverse KL at 1, a jump. "continuous" gives
    :math:`J_\beta / (\beta(1-\beta))`, whose limits are just those two.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        beta: in [0, 1]; 0 is the forward KL, 1 the reverse KL.
        scale: "continuous" or "gkd".
        temperature: as in `forward_kl`.

    Raises:
        ConfigError: as `forward_kl`; beta or scale out of range.

    Numerics: where p and q are close each term is a sum of parts that are never negative.

    Source: Agarwal et al. 2023 (GKD), arXiv:2306.13649, section 2.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> jsd(student, teacher, scale="gkd").total
        tensor(0.0338)
    """
    check_jsd(beta, scale)
    if beta in (0.0, 1.0):
        plain = forward_kl if beta == 0.0 else reverse_kl
        return plain(student_logits, teacher_logits, temperature=temperature)
    weights = (1 / (1 - beta), 1 / beta) if scale == "continuous" else (beta, 1 - beta)

    def each(p: LogDistributions, q: LogDistributions) -> Float[Tensor, " n"]:
        of_teacher = weights[0] * _kl_from_mixture(p, q, 1 - beta)
        return of_teacher + weights[1] * _kl_from_mixture(q, p, beta)

    return _compare(each, student_logits, teacher_logits, temperature)


def skewed_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum :math:`\tau^2\, KL(p \| \alpha p + (1-\alpha) q)` over the rows.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        alpha: in [0, 1); 0 is the forward KL. The loss is at most log(1/alpha).
        temperature: as in `forward_kl`.

    Raises:
        ConfigError: as `forward_kl`; alpha out of range.

    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898, section 3.1.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> skewed_kl(student, teacher, alpha=0.5).total
        tensor(0.0354)
    """
    check_alpha(alpha)
    return _compare(
        lambda p, q: row_kl(p, _mixture(p, q, alpha)), student_logits, teacher_logits, temperature
    )


def skewed_reverse_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum :math:`\tau^2\, KL(q \| (1-\alpha) p + \alpha q)` over the rows.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        alpha: in [0, 1); 0 is the reverse KL.
        temperature: as in `forward_kl`.

    Raises:
        ConfigError: as `skewed_kl`.

    Source: as `skewed_kl`.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> skewed_reverse_kl(student, teacher, alpha=0.5).total
        tensor(0.0323)
    """
    check_alpha(alpha)
    return _compare(
        lambda p, q: row_kl(q, _mixture(q, p, alpha)), student_logits, teacher_logits, temperature
    )


def adaptive_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    mu: float = 0.5,
    head_size: int = 1024,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum a mix of forward and reverse KL, weighted by where the two models differ.

    .. math:: \frac{g_h}{g_h + g_t} KL(p \| q) + \frac{g_t}{g_h + g_t} KL(q \| p)

    with :math:`g_h` the sum of :math:`|p_v - q_v|` over the head, :math:`g_t` over the rest. The
    head is the teacher's most likely tokens while their mass is at most mu, and always the first.
    The weights get no gradient. Where p = q both are one half.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        mu: mass of the head, in (0, 1).
        head_size: the head is looked for among so many of the likeliest tokens; a row whose
            likeliest tokens hold less than mu has them all as its head. A full sort costs 30
            times more.
        temperature: as in `forward_kl`.

    Raises:
        ConfigError: as `forward_kl`; mu or head_size out of range.

    Source: Wu et al. 2024, arXiv:2404.02657, section 4.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> adaptive_kl(student, teacher).total  # half of each: the two differences are equal
        tensor(0.1373)
    """
    check_head(mu, head_size)

    def each(p: LogDistributions, q: LogDistributions) -> Float[Tensor, " n"]:
        head = _head_share(p, q.detach(), mu, head_size)
        return head * row_kl(p, q) + (1 - head) * row_kl(q, p)

    return _compare(each, student_logits, teacher_logits, temperature)


def total_variation(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum :math:`\frac{\tau}{2} \sum_v |p_v - q_v|` over the rows.

    Args:
        student_logits: as in `forward_kl`.
        teacher_logits: as in `forward_kl`.
        temperature: as in `forward_kl`; the factor is tau, not its square.

    Returns:
        Probability, not nats: at most tau for each row; and the number of rows.

    Raises:
        ConfigError: as `forward_kl`.

    Source: Wen, Li, Du, Mou 2023 (f-divergence distillation), arXiv:2307.15190.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(3.0), 0.0]])
        >>> total_variation(student, teacher).total
        tensor(0.2500)
    """
    return _compare(
        lambda p, q: 0.5 * (p.exp() - q.exp()).abs().sum(-1),
        student_logits,
        teacher_logits,
        temperature,
        power=1,
    )


def check_jsd(beta: float, scale: str) -> None:
    """Refuse a beta outside [0, 1] and an unknown scale.

    Raises:
        ConfigError: with what came.
    """
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(
            f"beta must be at least 0 (forward KL) and at most 1 (reverse); got {beta}"
        )
    if scale not in SCALES:
        raise ConfigError(f"scale must be one of {', '.join(SCALES)}; got {scale!r}")


def check_alpha(alpha: float) -> None:
    """Refuse a share outside [0, 1).

    Raises:
        ConfigError: with the value that came.
    """
    if not 0.0 <= alpha < 1.0:
        raise ConfigError(f"alpha must be at least 0 and below 1; got {alpha}")


def check_head(mu: float, head_size: int) -> None:
    """Refuse a head without mass or without tokens.

    Raises:
        ConfigError: with the value that came.
    """
    if not 0.0 < mu < 1.0:
        raise ConfigError(f"mu must be above 0 and below 1; got {mu}")
    if head_size < 1:
        raise ConfigError(f"head_size must be at least 1; got {head_size}")


def _compare(
    each: Callable[[Tensor, Tensor], Tensor],
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    power: int = 2,
) -> LossSum:
    """Sum `each(log p, log q)` over the rows, times a power of the temperature."""
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits, same_width=True)

    def rows(student: Tensor, teacher: Tensor) -> list[Tensor]:
        p, q = log_distribution(teacher, temperature), log_distribution(student, temperature)
        return [temperature**power * each(p, q)]

    width = student_logits.shape[1]
    (total,) = sum_rows(rows, [student_logits], [teacher_logits], width=width)
    return LossSum(total, total.new_full((), float(student_logits.shape[0])))


def _mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """The log of share * a + (1 - share) * b."""
    log_share = math.log(share) if share > 0.0 else -math.inf
    return torch.logaddexp(log_a + log_share, log_b + math.log1p(-share))


def _kl_from_mixture(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """KL(a || m) for m = a + share (b - a), no term of it negative."""
    a, b = log_a.exp(), log_b.exp()
    plain = share * (b - a) - a * (_mixture(log_a, log_b, 1 - share) - log_a)
    if share > SMALL_SHARE:
        return plain.sum(-1)
    # Of second order in the share: what is left where m is all but a comes from a series.
    # 80: below the overflow of float32, and far beyond NEAR for any share worth the name.
    x = share * torch.expm1((log_b - log_a).clamp(max=80.0))
    series = a * log1p_residual(x.clamp(-2 * NEAR, 2 * NEAR))
    return torch.where(x.abs() <= NEAR, series, plain).sum(-1)


def _head_share(log_p: Tensor, log_q: Tensor, mu: float, head_size: int) -> Tensor:
    """How much of the sum of |p - q| lies in the teacher's head; 1/2 where there is none."""
    gap = (log_p.exp() - log_q.exp()).abs()
    top, index = log_p.topk(min(head_size, log_p.shape[-1]), -1)
    inside = top.exp().cumsum(-1) <= mu
    inside[..., :1] = True
    head = gap.gather(-1, index).masked_fill(~inside, 0.0).sum(-1)
    whole = gap.sum(-1)
    share = head / whole.clamp(min=torch.finfo(whole.dtype).tiny)
    return torch.where(whole > 0, share.clamp(max=1.0), 0.5)
