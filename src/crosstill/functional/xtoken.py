r"""X-Token: the student's distribution, carried over to the teacher's vocabulary.

Axes: N chunks, Vs and Vt vocabularies, K teacher tokens that are compared.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.clipped import check_tail, pooled
from crosstill.functional.losses import LossSum
from crosstill.functional.projection import Projection
from crosstill.functional.rowsum import (
    check_rows,
    check_temperature,
    log_distribution,
    row_kl,
    sum_rows,
)
from crosstill.functional.uld import sorted_l1

LEAST = 2e-38
"""Projected mass below this, near the smallest float32, counts as this and gets no gradient."""


def xtoken_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    projection: Projection,
    *,
    top_k: int = 512,
    tail: str = "pool",
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the divergence of the teacher's distribution from the projected student's.

    With q the student's distribution and W the projection, the student's mass on teacher token t
    is :math:`\hat q_t = \sum_s q_s W_{st}`. Over the teacher's K likeliest tokens among those
    that W reaches and, with "pool", one class for everything else (the student's unmapped mass
    among it):

    .. math:: \tau^2 \sum_t p_t \log \frac{p_t}{\hat q_t}

    With "drop" both sides are divided by their mass on the K tokens, as published.

    Args:
        student_logits: raw, the row that predicts the chunk's first token; `-inf` is allowed.
        teacher_logits: the same for the teacher.
        projection: from `make_projection`, on the device of the logits.
        top_k: K.
        tail: "pool" or "drop".
        temperature: tau > 0.

    Returns:
        Nats, and the number of chunks. Of the teacher's mass at this temperature `sums` has the
        shares on tokens with the same bytes ("exact"), that the projection reaches ("reached"),
        and that were compared one by one ("compared").

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: as `forward_kl`; projected mass below `LEAST` counts as that. The matrix is never made
    dense: E numbers for each row of a block. A row whose projected mass lies on the K tokens alone
    has no class for everything else.
    Source: Sreenivas et al. 2026, arXiv:2605.21699, P-KL.
    Oracle: tests/oracle/xtoken.py.

    Example:
        >>> from crosstill.functional.projection import make_projection
        >>> both = torch.tensor([[0, 0], [1, 1]])
        >>> same = make_projection(both, torch.tensor([0, 1, 2]), torch.tensor([0, 1]), 2)
        >>> xtoken_loss(torch.zeros(1, 2), torch.tensor([[0.75, 0.25]]).log(), same).total
        tensor(0.1308)
    """
    check_xtoken(top_k, tail, temperature)
    check_rows(student_logits, teacher_logits, same_width=False)
    sizes = (projection.unmapped.shape[0], projection.reached.shape[0])
    if (student_logits.shape[1], teacher_logits.shape[1]) != sizes:
        raise ConfigError(
            f"expected logits over {sizes[0]} student and {sizes[1]} teacher tokens, those of the "
            f"projection; got {student_logits.shape[1]} and {teacher_logits.shape[1]}"
        )

    def rows(student: Tensor, teacher: Tensor) -> list[Tensor]:
        q = log_distribution(student, temperature).exp()
        log_p = log_distribution(teacher, temperature)
        reachable = log_p.masked_fill(~projection.reached, -torch.inf)
        top, index = reachable.topk(min(top_k, log_p.shape[-1]), -1)
        carried = project(q, projection)
        compared = carried.gather(-1, index)
        loss = _divergence(log_p, top, index, compared, _rest(q, carried, index, projection), tail)
        shares = [_mass(log_p, projection.exact), _mass(log_p, projection.reached)]
        return [temperature**2 * loss, *shares, top.exp().sum(-1)]

    total, exact, reached, compared = sum_rows(
        rows, [student_logits], [teacher_logits], width=len(projection.student) + sum(sizes)
    )
    count = total.new_full((), float(student_logits.shape[0]))
    return LossSum(total, count, {"exact": exact, "reached": reached, "compared": compared})


def xtoken_hybrid_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    pairs: Int64[Tensor, "M 2"],
    *,
    matched_weight: float = 1.0,
    unmatched_weight: float = 1.0,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum a divergence over matched tokens and a sorted distance over all others.

    Matched tokens are compared one by one, and their mass with that of the unmatched as one class
    of its own. The probabilities of the unmatched tokens are sorted on both sides and subtracted:

    .. math:: \tau^2 \Big( w_m \sum_{m} p_m \log\frac{p_m}{q_m}
              + w_u \sum_r \big| p_{(r)} - q_{(r)} \big| \Big)

    Args:
        student_logits: as in `xtoken_loss`.
        teacher_logits: as in `xtoken_loss`.
        pairs: rows of student id and teacher id, one-to-one, from `relaxed_pairs`.
        matched_weight: at least 0.
        unmatched_weight: at least 0.
        temperature: tau > 0.

    Returns:
        Nats for the first part, probability for the second; and the number of chunks.
        `sums["matched"]` is the teacher's mass on matched tokens.

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: as `forward_kl`; never negative.
    Source: Sreenivas et al. 2026, arXiv:2605.21699, H-KL.
    Oracle: tests/oracle/xtoken.py.

    Example:
        >>> both = torch.tensor([[0, 0]])
        >>> teacher = torch.tensor([[0.75, 0.25]]).log()
        >>> xtoken_hybrid_loss(torch.zeros(1, 2), teacher, both).total  # 0.1308 + |0.25 - 0.5|
        tensor(0.3808)
    """
    check_hybrid(matched_weight, unmatched_weight, temperature)
    check_rows(student_logits, teacher_logits, same_width=False)
    student_ids, teacher_ids = pairs.unbind(-1)
    others = [
        _others(ids, logits.shape[1])
        for ids, logits in ((student_ids, student_logits), (teacher_ids, teacher_logits))
    ]

    def rows(student: Tensor, teacher: Tensor) -> list[Tensor]:
        log_q, log_p = (log_distribution(one, temperature) for one in (student, teacher))
        left_q, left_p = log_q[:, others[0]], log_p[:, others[1]]
        q = log_distribution(torch.cat([log_q[:, student_ids], _together(left_q)], -1))
        p = log_distribution(torch.cat([log_p[:, teacher_ids], _together(left_p)], -1))
        loss = matched_weight * row_kl(p, q)
        loss = loss + unmatched_weight * sorted_l1(left_q.exp(), left_p.exp())
        return [temperature**2 * loss, log_p[:, teacher_ids].exp().sum(-1)]

    width = student_logits.shape[1] + teacher_logits.shape[1]
    total, matched = sum_rows(rows, [student_logits], [teacher_logits], width=width)
    count = total.new_full((), float(student_logits.shape[0]))
    return LossSum(total, count, {"matched": matched})


def project(q: Float[Tensor, "n Vs"], projection: Projection) -> Float[Tensor, "n Vt"]:
    """Carry rows of the student's mass over to the teacher's tokens.

    Example:
        >>> from crosstill.functional.projection import make_projection
        >>> none = torch.zeros(0, 2, dtype=torch.int64)
        >>> w = make_projection(none, torch.tensor([0, 2]), torch.tensor([0, 1]), 2, decay=1.0)
        >>> project(torch.tensor([[1.0]]), w)
        tensor([[0.5000, 0.5000]])
    """
    # Rows of the transposed matrices: index_add over the first axis runs over whole lines.
    parts = q.t()[projection.student] * projection.weight.to(q.dtype).unsqueeze(-1)
    carried = q.new_zeros(projection.reached.shape[0], q.shape[0])
    return carried.index_add(0, projection.teacher, parts).t()


def check_xtoken(top_k: int, tail: str, temperature: float) -> None:
    """Refuse options out of range.

    Raises:
        ConfigError: with what came.
    """
    if top_k < 1:
        raise ConfigError(f"top_k must be at least 1; got {top_k}")
    check_tail(tail)
    check_temperature(temperature)


def check_hybrid(matched_weight: float, unmatched_weight: float, temperature: float) -> None:
    """Refuse options of the hybrid form out of range.

    Raises:
        ConfigError: with what came.
    """
    for name, weight in (("matched", matched_weight), ("unmatched", unmatched_weight)):
        if not 0.0 <= weight < float("inf"):
            raise ConfigError(f"{name}_weight must be at least 0 and finite; got {weight}")
    if matched_weight == unmatched_weight == 0.0:
        raise ConfigError("matched_weight and unmatched_weight are both 0; nothing is compared")
    check_temperature(temperature)


def _others(ids: Tensor, size: int) -> Tensor:
    """The ids that are not among these; depends on the vocabularies alone."""
    left = torch.ones(size, dtype=torch.bool, device=ids.device).index_fill(0, ids, False)
    return left.nonzero().squeeze(-1)


def _together(logits: Tensor) -> Tensor:
    """One class for all of them; none where there is no column."""
    return pooled(logits) if logits.shape[1] else logits


def _divergence(
    log_p: Tensor, top: Tensor, index: Tensor, compared: Tensor, rest: Tensor, tail: str
) -> Tensor:
    """KL over the compared tokens and, pooled, everything else."""
    # Where fewer than K tokens are reached, what fills the K up is no class of its own.
    filling = top == -torch.inf
    carried = compared.clamp(min=LEAST).log().masked_fill(filling, -torch.inf)
    if tail == "drop":
        return row_kl(log_distribution(top), log_distribution(carried))
    left = torch.where(filling, log_p.gather(-1, index), -torch.inf)
    # A student that can have nothing elsewhere is not asked for it.
    none = rest <= 0.0
    others = pooled(log_p.scatter(-1, index, left)).masked_fill(none, -torch.inf)
    rest = rest.clamp(min=LEAST).log().masked_fill(none, -torch.inf)
    return row_kl(
        log_distribution(torch.cat([top, others], -1)),
        log_distribution(torch.cat([carried, rest], -1)),
    )


def _rest(q: Tensor, carried: Tensor, index: Tensor, projection: Projection) -> Tensor:
    """[n, 1]: the student's mass on everything that is not compared, unmapped tokens included."""
    elsewhere = carried.scatter(-1, index, 0.0).sum(-1, keepdim=True)
    return elsewhere + (q * projection.unmapped).sum(-1, keepdim=True)


def _mass(log_p: Tensor, tokens: Tensor) -> Tensor:
    return (log_p.exp() * tokens).sum(-1)
