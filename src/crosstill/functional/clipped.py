r"""Two divergences that change the teacher's distribution first: clipped, and swapped.

Axes: N rows, V vocabulary. Conventions and numerics as in `functional.classical`: p is the
teacher's distribution, q the student's, both at the temperature :math:`\tau`; the sum is multiplied
by :math:`\tau^2`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.rowsum import (
    check_rows,
    check_temperature,
    log_distribution,
    row_kl,
    sum_rows,
)

TAILS = ("pool", "drop")
"""What becomes of the tokens that are clipped away or not compared one by one."""


def dac_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    target: Int64[Tensor, " N"],
    *,
    lower: float = 0.0,
    upper: float = 0.95,
    top_k: int = 1024,
    tail: str = "pool",
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the forward KL over the dense part of the teacher's distribution.

    The teacher's tokens are put in order, likeliest first. With :math:`c_i` the mass of the tokens
    before the i-th, the dense part is the tokens with :math:`lower \le c_i < upper`, and the
    target. How many these are follows from each distribution. Over them and, with "pool", one
    class for everything else,

    .. math:: \tau^2 \sum_i \tilde p_i \log \frac{\tilde p_i}{\tilde q_i}

    With "drop" both sides are divided by their mass on the dense part and the rest is left out.

    Args:
        student_logits: raw logits; `-inf` is allowed.
        teacher_logits: raw logits over the same vocabulary.
        target: the text's own token.
        lower: mass of the likeliest tokens that are clipped away, in [0, 1).
        upper: mass after which everything is clipped away, above `lower`, at most 1.
        top_k: the dense part is looked for among so many of the likeliest tokens.
        tail: "pool" or "drop".
        temperature: tau > 0.

    Returns:
        Nats, and the number of rows. `sums["kept"]` is the number of tokens compared.

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: as `forward_kl`. With "pool" the loss is at most the forward KL.
    Source: Liu et al. 2024, arXiv:2407.10068, section 3.2, with bounds given in place of a network.
    Oracle: tests/oracle/classical.py.

    Example:
        >>> teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
        >>> loss = dac_kl(torch.zeros(1, 3), teacher, torch.tensor([0]), upper=0.5)
        >>> loss.total, loss.sums["kept"]  # the first token against everything else
        (tensor(0.1483), tensor(1.))
    """
    check_clipping(lower, upper, top_k, tail)
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits, same_width=True)

    def rows(student: Tensor, teacher: Tensor, target: Tensor) -> list[Tensor]:
        p, q = log_distribution(teacher, temperature), log_distribution(student, temperature)
        dense = _dense(p, target, lower, upper, top_k)
        a, b = (_clipped(one, dense, tail) for one in (p, q))
        return [temperature**2 * row_kl(a, b), dense.sum(-1)]

    total, kept = sum_rows(
        rows, [student_logits], [teacher_logits, target], width=student_logits.shape[1]
    )
    count = total.new_full((), float(student_logits.shape[0]))
    return LossSum(total, count, {"kept": kept.to(total.dtype)})


def swapped_kl(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    target: Int64[Tensor, " N"],
    *,
    student_weight: float = 1.0,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the forward KL from a teacher, and from the student itself, that are set right.

    Where a model's likeliest token is not the target, the two tokens' logits change places:
    :math:`s(z)`. The student learns from the teacher set right and, with a weight, from itself
    set right:

    .. math:: \tau^2 \big( KL(p_{s} \| q) + w\, KL(\bar q_{s} \| q) \big)

    Args:
        student_logits: raw logits; `-inf` is allowed.
        teacher_logits: raw logits over the same vocabulary.
        target: the text's own token.
        student_weight: w, at least 0; the paper takes 0 early in training and 1 later.
        temperature: tau > 0.

    Returns:
        Nats, and the number of rows. `sums["swapped"]` counts rows where the teacher was set right.

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: as `forward_kl`. The student set right gets no gradient. Of several likeliest tokens
    the lowest counts, unless the target is one of them.
    Source: Limantoro et al. 2025, arXiv:2504.20108, section 3.
    Oracle: tests/oracle/classical.py.

    Example:
        >>> teacher = torch.tensor([[0.6, 0.4]]).log()
        >>> loss = swapped_kl(torch.zeros(1, 2), teacher, torch.tensor([1]), student_weight=0.0)
        >>> loss.total, loss.sums["swapped"]
        (tensor(0.0201), tensor(1.))
    """
    check_student_weight(student_weight)
    check_temperature(temperature)
    check_rows(student_logits, teacher_logits, same_width=True)

    def rows(student: Tensor, teacher: Tensor, target: Tensor) -> list[Tensor]:
        right, changed = _set_right(teacher, target)
        q = log_distribution(student, temperature)
        loss = row_kl(log_distribution(right, temperature), q)
        if student_weight > 0:
            own, _ = _set_right(student.detach(), target)
            loss = loss + student_weight * row_kl(log_distribution(own, temperature), q)
        return [temperature**2 * loss, changed]

    total, changed = sum_rows(
        rows, [student_logits], [teacher_logits, target], width=student_logits.shape[1]
    )
    count = total.new_full((), float(student_logits.shape[0]))
    return LossSum(total, count, {"swapped": changed.to(total.dtype)})


def check_clipping(lower: float, upper: float, top_k: int, tail: str) -> None:
    """Refuse bounds of the dense part that leave nothing, and an unknown tail.

    Raises:
        ConfigError: with what came.
    """
    if not 0.0 <= lower < upper <= 1.0:
        raise ConfigError(
            f"expected 0 <= lower < upper <= 1, masses of the teacher's likeliest tokens; got "
            f"lower {lower} and upper {upper}"
        )
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1; got {top_k}")
    check_tail(tail)


def check_tail(tail: str) -> None:
    """Refuse an unknown way with the tail.

    Raises:
        ConfigError: with what came.
    """
    if tail not in TAILS:
        raise ConfigError(f"tail must be one of {', '.join(TAILS)}; got {tail!r}")


def check_student_weight(weight: float) -> None:
    """Refuse a weight that is negative or not finite.

    Raises:
        ConfigError: with what came.
    """
    if not 0.0 <= weight < float("inf"):
        raise ConfigError(f"student_weight must be at least 0 and finite; got {weight}")


def _dense(log_p: Tensor, target: Tensor, lower: float, upper: float, top_k: int) -> Tensor:
    """Bool [n, V]: the tokens of the dense part."""
    top, index = log_p.topk(min(top_k, log_p.shape[-1]), -1)
    mass = top.exp()
    before = mass.cumsum(-1) - mass
    inside = (before >= lower) & (before < upper)
    dense = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, index, inside)
    return dense.scatter(-1, target.unsqueeze(-1), True)


def _clipped(log_p: Tensor, dense: Tensor, tail: str) -> Tensor:
    """The log of a distribution over the dense part and, pooled, one class of all the rest."""
    kept = log_p.masked_fill(~dense, -torch.inf)
    if tail == "drop":
        return log_distribution(kept)
    rest = log_p.masked_fill(dense, -torch.inf)
    return log_distribution(torch.cat([kept, pooled(rest)], -1))


def pooled(logits: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows 1"]:
    """Compute one logit for all of a row together; `-inf` with zero gradient where all are `-inf`.

    Example:
        >>> pooled(torch.zeros(1, 2))
        tensor([[0.6931]])
    """
    nothing = logits.amax(-1, keepdim=True) == -torch.inf
    mass = torch.logsumexp(logits.masked_fill(nothing, 0.0), -1, keepdim=True)
    return mass.masked_fill(nothing, -torch.inf)


def _set_right(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange the logits of the target and of the likeliest token; and whether that changed it."""
    target = target.unsqueeze(-1)
    top, index = logits.max(-1, keepdim=True)
    own = logits.gather(-1, target)
    right = logits.scatter(-1, index, own).scatter(-1, target, top)
    return right, (own < top).squeeze(-1)
