"""Dual-space distillation: each model's states are read by the other model's head.

Axes: N student rows, M teacher rows, Ds and Dt hidden sizes, Vs and Vt vocabularies, S shared
tokens. Row t of the logits predicts token t + 1.
"""

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.head import HeadMatrix, row_logits
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.rowsum import check_temperature, log_distribution, row_kl, sum_rows

NO_TARGET = -1
"""The target of a row that has none."""

SKEW = 0.1
"""Share of the other distribution in the skewed divergences."""


def dskd_loss(
    projected_teacher: Float[Tensor, "N Ds"],
    projected_student: Float[Tensor, "M Dt"],
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "M Vt"],
    target: Int64[Tensor, " N"],
    *,
    student_head: HeadMatrix,
    teacher_head: HeadMatrix,
    temperature: float = 2.0,
    divergence: str = "kl",
    teacher_divergence: str = "kl",
    agreement: bool = False,
) -> LossSum:
    r"""Distil in the student's space and in the teacher's.

    .. math:: \sum_n -\log \mathrm{softmax}(Z_{ts})_{y_n}
              + \sum_n D_\tau(\bar Z_{ts} \,\|\, z_s) + \sum_m D_\tau(z_t \,\|\, Z_{st})

    with :math:`Z_{ts}` the student's head on the projected teacher, :math:`Z_{st}` the teacher's
    head on the projected student, :math:`D_\tau` a divergence of the softmax of both divided by
    tau, not multiplied by its square, and a bar for "no gradient".

    Args:
        projected_teacher: the teacher's states in the student's space, with the projection's graph.
        projected_student: the student's states in the teacher's space, with both graphs.
        student_logits: raw, with a graph.
        teacher_logits: raw; they get no gradient.
        target: student id that the projected teacher shall predict; -1 where there is none: the
            row then has no first term and, under `agreement`, no second one.
        student_head: without surplus rows; it gets no gradient.
        teacher_head: likewise.
        temperature: tau > 0.
        divergence: of the second term: "kl" (teacher from student), "reverse_kl", "jsd",
            "skewed_kl" or "skewed_reverse_kl" (a tenth of the first distribution in the second).
        teacher_divergence: of the third term.
        agreement: the second term only where the projected teacher's likeliest token is the target.

    Returns:
        The sum in nats and N. `sums` has "target" (first term), "student_space" (second),
        "teacher_space" (third) and "agreement" (rows that agree).

    Raises:
        ConfigError: an unknown divergence, or a temperature out of range.

    Numerics: products in the dtype of the heads, the rest in float32 (float64 stays), in blocks of
    rows whose gradient is made on the way; a log-probability below -1e4 counts as -1e4 and gets no
    gradient.

    Source: arXiv:2406.17328, section 3; arXiv:2504.11426 for the agreement.
    Oracle: tests/oracle/dskd.py.

    Example:
        >>> eye, rows = HeadMatrix(torch.eye(2)), torch.tensor([[0.0, 1.0]])
        >>> loss = dskd_loss(rows, rows, rows, rows, torch.tensor([1]),
        ...                  student_head=eye, teacher_head=eye)
        >>> loss.total, loss.sums["student_space"]  # equal models: the target's term is left
        (tensor(0.3133), tensor(0.))
    """
    check_temperature(temperature)
    check_dskd_divergence(divergence)
    check_dskd_divergence(teacher_divergence)

    def in_student_space(states: Tensor, logits: Tensor, target: Tensor) -> list[Tensor]:
        terms = student_space(
            states, logits, target, student_head, temperature, divergence, agreement
        )
        return [terms[0] + terms[1], *terms]

    def in_teacher_space(states: Tensor, logits: Tensor) -> list[Tensor]:
        return [teacher_space(states, logits, teacher_head, temperature, teacher_divergence)]

    widths = student_logits.shape[1], teacher_logits.shape[1]
    student = sum_rows(
        in_student_space, [projected_teacher, student_logits], [target], width=widths[0]
    )
    (teacher,) = sum_rows(in_teacher_space, [projected_student], [teacher_logits], width=widths[1])
    return dskd_sum(student[0] + teacher, (*student[1:], teacher), len(target))


def dskd_sum(total: Float[Tensor, ""], terms: tuple[Tensor, ...], count: int) -> LossSum:
    """Name the sums of the terms: target, student's space, agreement, teacher's space."""
    names = ("target", "student_space", "agreement", "teacher_space")
    sums = {name: term.detach() for name, term in zip(names, terms, strict=True)}
    return LossSum(total, total.new_full((), count), sums)


def student_space(
    projected_teacher: Float[Tensor, "N Ds"],
    student_logits: Float[Tensor, "N Vs"],
    target: Int64[Tensor, " N"],
    head: HeadMatrix,
    temperature: float,
    divergence: str,
    agreement: bool,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute the first two terms of `dskd_loss` for each row, and 1.0 where a row agrees."""
    dtype = accumulation_dtype(projected_teacher, student_logits)
    logits = row_logits(projected_teacher.to(head.weight.dtype), head).to(dtype)
    known = target != NO_TARGET
    chosen = logits.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    ce = (torch.logsumexp(logits, 1) - chosen).masked_fill(~known, 0.0)
    agrees = known & (logits.argmax(1) == target)
    p = log_distribution(logits.detach(), temperature)
    kd = _DIVERGENCES[divergence](p, log_distribution(student_logits.to(dtype), temperature))
    return ce, kd.masked_fill(~agrees, 0.0) if agreement else kd, agrees.to(dtype)


def teacher_space(
    projected_student: Float[Tensor, "M Dt"],
    teacher_logits: Float[Tensor, "M Vt"],
    head: HeadMatrix,
    temperature: float,
    divergence: str,
) -> Float[Tensor, " M"]:
    """Compute the third term of `dskd_loss` for each row."""
    dtype = accumulation_dtype(projected_student, teacher_logits)
    logits = row_logits(projected_student.to(head.weight.dtype), head).to(dtype)
    p = log_distribution(teacher_logits.detach().to(dtype), temperature)
    return _DIVERGENCES[divergence](p, log_distribution(logits, temperature))


def _jsd(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    middle = torch.logaddexp(p, q) - math.log(2.0)
    return 0.5 * (row_kl(p, middle) + row_kl(q, middle))


def _skewed(p: Float[Tensor, "N V"], q: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    return row_kl(p, torch.logaddexp(p + math.log(SKEW), q + math.log1p(-SKEW)))


_DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "kl": row_kl,
    "reverse_kl": lambda p, q: row_kl(q, p),
    "jsd": _jsd,
    "skewed_kl": _skewed,
    "skewed_reverse_kl": lambda p, q: _skewed(q, p),
}
DSKD_DIVERGENCES = tuple(_DIVERGENCES)
"""What `dskd_loss` knows."""


def check_dskd_divergence(divergence: str) -> None:
    """Refuse an unknown divergence.

    Raises:
        ConfigError: with the names that exist.
    """
    if divergence not in _DIVERGENCES:
        raise ConfigError(
            f"divergence must be one of {', '.join(DSKD_DIVERGENCES)}; got {divergence!r}"
        )


def cross_model_attention(
    query: Float[Tensor, "B n E"],
    key: Float[Tensor, "B m E"],
    student_mask: Bool[Tensor, "B n"],
    teacher_mask: Bool[Tensor, "B m"],
) -> tuple[Float[Tensor, "B n m"], Float[Tensor, "B m n"]]:
    r"""Compute who reads whom: softmax of :math:`q k^\top / \sqrt E` in both directions.

    Args:
        query: of the student's positions.
        key: of the teacher's.
        student_mask: which student positions take part.
        teacher_mask: which of the teacher's.

    Returns:
        Weights of the teacher's positions for each of the student's, and the reverse; zero outside
        the masks.

    Source: arXiv:2406.17328, section 3.2.

    Example:
        >>> one = torch.zeros(1, 2, 3)
        >>> both = torch.tensor([[True, True]])
        >>> cross_model_attention(one, one, both, torch.tensor([[True, False]]))[0]
        tensor([[[1., 0.],
                 [1., 0.]]])
    """
    scores = query @ key.transpose(1, 2) / key.shape[2] ** 0.5
    inside = student_mask.unsqueeze(2) & teacher_mask.unsqueeze(1)
    # a finite fill: a row that is masked as a whole has then no NaN, and is zeroed after it
    scores = scores.masked_fill(~inside, torch.finfo(scores.dtype).min)
    to_student = scores.softmax(2).masked_fill(~inside, 0.0)
    to_teacher = scores.softmax(1).masked_fill(~inside, 0.0)
    return to_student, to_teacher.transpose(1, 2)


def inside_deviation(
    values: Float[Tensor, "B T E"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1 1"]:
    """Compute each sequence's standard deviation over the numbers of its masked positions.

    Returns:
        Unbiased; 1 where a sequence has no two numbers, or only equal ones.

    Example:
        >>> values = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
        >>> inside_deviation(values, torch.tensor([[True, False]]))
        tensor([[[1.4142]]])
    """
    inside = mask.unsqueeze(2)
    count = mask.sum(1).view(-1, 1, 1) * values.shape[2]
    kept = values.masked_fill(~inside, 0.0)
    mean = kept.sum((1, 2), keepdim=True) / count.clamp(min=1)
    apart = (kept - mean).masked_fill(~inside, 0.0).square().sum((1, 2), keepdim=True)
    deviation = (apart / (count - 1).clamp(min=1)).sqrt()
    return torch.where(deviation > 0, deviation, 1.0)


def pseudo_inverse(weight: Float[Tensor, "S D"]) -> Float[Tensor, "S D"]:
    r"""Compute the pseudo-inverse of `weight.T` [D, S], which is [S, D], for S far above D.

    By the eigenvectors of the D x D Gram matrix in float64: directions with less than
    :math:`10^{-12}` of the largest eigenvalue are left out.

    Returns:
        In the dtype of `weight`, float32 at least.

    Example:
        >>> pseudo_inverse(torch.tensor([[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500],
                [0.0000, 0.0000]])
    """
    dtype = accumulation_dtype(weight)
    wide = weight.detach().double()
    values, vectors = torch.linalg.eigh(wide.t() @ wide)
    kept = values > values.amax().clamp(min=torch.finfo(values.dtype).tiny) * 1e-12
    inverse = torch.where(kept, 1.0 / torch.where(kept, values, 1.0), 0.0)
    return (wide @ ((vectors * inverse) @ vectors.t())).to(dtype)


def logit_projection(
    source: HeadMatrix, target: HeadMatrix, target_inverse: Float[Tensor, "S Dt"]
) -> Float[Tensor, "Ds Dt"]:
    r"""Compute the map of states under which the target's head gives the source's logits.

    The matrix P for which :math:`h P W_{target}^\top` is nearest to :math:`h W_{source}^\top`, by
    least squares over the shared tokens: :math:`P = W_{source}^\top \operatorname{pinv}
    (W_{target}^\top)`. Biases and soft caps are not in it, logit scales are.

    Args:
        source: head whose logits are wanted, its rows those of the shared tokens, in order.
        target: head that shall give them; only its logit scale is read.
        target_inverse: `pseudo_inverse` of its rows of the shared tokens.

    Source: arXiv:2504.11426, section 3.

    Example:
        >>> source, target = HeadMatrix(torch.eye(2)), HeadMatrix(2 * torch.eye(2))
        >>> logit_projection(source, target, pseudo_inverse(target.weight))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    rows = source.weight.detach().to(target_inverse.dtype)
    return rows.t() @ target_inverse * (source.logit_scale / target.logit_scale)
