r"""MinED: the teacher's distribution carried over by a map from its tokens to the student's.

Axes: N rows, Vs and Vt vocabularies.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.rowsum import check_rows, check_temperature, log_distribution, sum_rows

MERGES = ("sum", "max", "first")


def mined_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    token_map: Int64[Tensor, " map"],
    *,
    temperature: float = 1.0,
    merge: str = "sum",
) -> LossSum:
    r"""Sum the divergence of the carried teacher's distribution from the student's.

    .. math:: \tau^2 \sum_n \mathrm{KL}\big(p'_n \,\|\, q_n\big), \qquad
              p'_n(s) \propto \sum_{v: m(v) = s} p_n(v)

    with p and q the softmax of the teacher's and the student's logits over tau and m the map.

    Args:
        student_logits: raw; `-inf` is allowed.
        teacher_logits: raw, the teacher's row for the same point of the text; gets no gradient.
        token_map: the student's token for every token of the teacher, below Vs; -1 for none, whose
            mass is left out and the rest divided by its sum.
        temperature: tau > 0, for both sides.
        merge: of several teacher tokens with one target: "sum", "max", or "first" (by id, as the
            released code).

    Returns:
        Nats, and the number of rows. `sums["mapped"]` adds up the teacher's mass that the map
        carries.

    Raises:
        ConfigError: shapes that do not fit, or an option out of range.

    Numerics: float32 at least. Student log-probabilities below -1e4 count as that and get no
    gradient; a row of which nothing is carried adds 0. Neither logits are written to. Blocks of
    rows; nothing is read back from the device.
    Source: Wan et al. 2024 (FuseLLM), arXiv:2401.10491, with the update at every step of Zhang et
    al. 2024, arXiv:2406.17328, whose released code uses "first" and no factor tau squared.
    Oracle: tests/oracle/mined.py.

    Example:
        >>> teacher = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> loss = mined_loss(torch.zeros(1, 2), teacher, torch.tensor([0, 1, 0]))
        >>> loss.total, loss.sums["mapped"]
        (tensor(0.0823), tensor(1.))
    """
    check_rows(student_logits, teacher_logits, same_width=False)
    check_mined(temperature, merge)
    if token_map.shape[0] != teacher_logits.shape[1]:
        raise ConfigError(
            f"expected a map of {teacher_logits.shape[1]} teacher tokens, one for each column of "
            f"teacher_logits; got {token_map.shape[0]}"
        )
    size = student_logits.shape[1]

    def rows(student: Tensor, teacher: Tensor) -> list[Tensor]:
        carried = carry(log_distribution(teacher, temperature).exp(), token_map, size, merge=merge)
        mass = carried.sum(-1, keepdim=True)
        target = carried / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        log_q = log_distribution(student, temperature)
        loss = torch.xlogy(target, target).sum(-1) - (target * log_q).sum(-1)
        return [temperature**2 * loss, mass.squeeze(-1)]

    width = size + teacher_logits.shape[1]
    total, mapped = sum_rows(rows, [student_logits], [teacher_logits], width=width)
    return LossSum(total, total.new_full((), float(student_logits.shape[0])), {"mapped": mapped})


def carry(
    probabilities: Float[Tensor, "N Vt"],
    token_map: Int64[Tensor, " Vt"],
    size: int,
    *,
    merge: str = "sum",
) -> Float[Tensor, "N Vs"]:
    """Carry distributions over to another vocabulary; what has no target is left out.

    Args:
        probabilities: of the teacher's tokens.
        token_map: as in `mined_loss`.
        size: Vs.
        merge: as in `mined_loss`.

    Returns:
        For every student token the mass of the teacher tokens that the map sends there; a row sums
        to 1 only if the map sends every token somewhere and `merge` is "sum".

    Example:
        >>> carry(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([1, -1, 1]), 2, merge="max")
        tensor([[0.0000, 0.5000]])
    """
    target = torch.where(token_map < 0, size, token_map)  # a column more, cut off again
    carried = probabilities.new_zeros(probabilities.shape[0], size + 1)
    if merge == "max":
        index = target.expand_as(probabilities)
        return carried.scatter_reduce_(1, index, probabilities, "amax")[:, :size]
    if merge == "first":
        place = torch.arange(len(target), device=target.device)
        first = place.new_full((size + 1,), len(target)).scatter_reduce_(0, target, place, "amin")
        probabilities = probabilities.masked_fill(first[target] != place, 0.0)
    return carried.index_add_(1, target, probabilities)[:, :size]


def one_hot_loss(
    student_logits: Float[Tensor, "N Vs"],
    target: Int64[Tensor, " N"],
    *,
    temperature: float = 1.0,
) -> LossSum:
    r"""Sum the divergence of certainty about a token from the student's distribution.

    .. math:: -\tau^2 \sum_n \log q_n(y_n)

    FuseLLM's target where no teacher token belongs to the student's.

    Args:
        student_logits: raw, the rows that predict the tokens.
        target: the text's token.
        temperature: tau > 0.

    Returns:
        Nats, and the number of rows.

    Raises:
        ConfigError: a temperature out of range.

    Numerics: as `mined_loss`.
    Oracle: tests/oracle/mined.py.

    Example:
        >>> one_hot_loss(torch.zeros(1, 2), torch.tensor([1])).total
        tensor(0.6931)
    """
    check_temperature(temperature)

    def rows(student: Tensor, target: Tensor) -> list[Tensor]:
        log_q = log_distribution(student, temperature)
        return [-(temperature**2) * log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)]

    (total,) = sum_rows(rows, [student_logits], [target], width=student_logits.shape[1])
    return LossSum(total, total.new_full((), float(len(target))))


def check_mined(temperature: float, merge: str) -> None:
    """Refuse options out of range.

    Raises:
        ConfigError: with the option and the value that came.
    """
    check_temperature(temperature)
    if merge not in MERGES:
        raise ConfigError(f"merge must be one of {', '.join(MERGES)}; got {merge!r}")
