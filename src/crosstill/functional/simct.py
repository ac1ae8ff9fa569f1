r"""SimCT: the tokens both vocabularies have, and the text's own chunk as one candidate more.

Axes: N chunks, Vs and Vt vocabularies, S shared tokens.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import FLOOR
from crosstill.functional.rowsum import (
    check_rows,
    check_temperature,
    log_distribution,
    row_kl,
    sum_rows,
)

DIRECTIONS = ("kl", "reverse_kl")
"""Which way round the two distributions are compared."""


def simct_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    shared: Int64[Tensor, "S 2"],
    student_span: Float[Tensor, " N"],
    teacher_span: Float[Tensor, " N"],
    is_span: Bool[Tensor, " N"],
    *,
    divergence: str = "kl",
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the divergence over a common vocabulary made for each chunk.

    Before chunk n both models have read the same bytes. The candidates of what comes next are the
    S shared tokens and, where the chunk takes several tokens on a side, the chunk itself. A
    model's score of a shared token is its log-probability; that of the chunk is the mean
    log-probability of the model's own tokens in it:

    .. math:: s_n = \Big( \log p(v_1), \dots, \log p(v_S),\ \tfrac1m \sum_{i=1}^m \log p(x_i) \Big)

    and :math:`\tau^2 D` compares the two softmaxes of :math:`s_n / \tau`.

    Args:
        student_logits: raw, the row that predicts the chunk's first token.
        teacher_logits: the same for the teacher.
        shared: rows of student id and teacher id.
        student_span: nats, mean log-probability of the student's tokens in the chunk; read where
            `is_span` is True. It gets a gradient.
        teacher_span: the same for the teacher.
        is_span: the chunk takes several tokens on one side at least.
        divergence: "kl" from the teacher, or "reverse_kl".
        temperature: tau > 0.

    Returns:
        Nats, and the number of chunks. `sums["shared_mass"]` is the teacher's mass on the shared
        tokens, `sums["spans"]` the number of chunks that were candidates of their own.

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: as `forward_kl`. The loss is a divergence of distributions that add up to 1, so it
    is never negative, and adding a constant to a row of logits changes nothing.
    Source: Sun et al. 2026, arXiv:2605.07711.
    Oracle: tests/oracle/simct.py.

    Example:
        >>> both = torch.tensor([[0, 0], [1, 1]])
        >>> teacher = torch.tensor([[0.75, 0.25]]).log()
        >>> none, no = torch.zeros(1), torch.tensor([False])
        >>> simct_loss(torch.zeros(1, 2), teacher, both, none, none, no).total
        tensor(0.1308)
    """
    check_simct(divergence, temperature)
    check_rows(student_logits, teacher_logits, same_width=False)
    student_ids, teacher_ids = shared.to(student_logits.device).unbind(-1)

    def rows(
        student: Tensor,
        student_span: Tensor,
        teacher: Tensor,
        teacher_span: Tensor,
        is_span: Tensor,
    ) -> list[Tensor]:
        q, _ = _scores(student, student_ids, student_span, is_span, temperature)
        p, mass = _scores(teacher, teacher_ids, teacher_span, is_span, temperature)
        if divergence == "reverse_kl":
            p, q = q, p
        return [temperature**2 * row_kl(p, q), mass, is_span]

    total, mass, spans = sum_rows(
        rows,
        [student_logits, student_span],
        [teacher_logits, teacher_span, is_span],
        width=max(student_logits.shape[1], teacher_logits.shape[1]),
    )
    count = total.new_full((), float(student_logits.shape[0]))
    return LossSum(total, count, {"shared_mass": mass, "spans": spans.to(total.dtype)})


def check_simct(divergence: str, temperature: float) -> None:
    """Refuse an unknown divergence and a temperature out of range.

    Raises:
        ConfigError: with what came.
    """
    if divergence not in DIRECTIONS:
        raise ConfigError(f"divergence must be one of {', '.join(DIRECTIONS)}; got {divergence!r}")
    check_temperature(temperature)


def _scores(
    logits: Tensor, ids: Tensor, span: Tensor, is_span: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-distribution over the candidates [n, S + 1], and the mass of the shared ones [n]."""
    known = log_distribution(logits).index_select(-1, ids)
    own = span.clamp(min=FLOOR).masked_fill(~is_span, -torch.inf).unsqueeze(-1)
    candidates = log_distribution(torch.cat([known, own], -1), temperature)
    return candidates, known.detach().exp().sum(-1)
