r"""Contextual dynamic mapping: two distributions compared on the tokens that were paired.

Axes: N groups of rows, P pairs of a group, V vocabulary.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import FLOOR, accumulation_dtype
from crosstill.functional.topk import ranked, top_values
from crosstill.kernels import row_summary as kernel


def cdm_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    student_ids: Int64[Tensor, "N P"],
    teacher_ids: Int64[Tensor, "N P"],
    mapped: Bool[Tensor, "N P"],
    *,
    temperature: float = 1.0,
    weight: Float[Tensor, " N"] | None = None,
) -> LossSum:
    r"""Compare two models on pairs of tokens: the divergence of the teacher from the student.

    .. math:: \tau^2 \sum_n w_n \mathrm{KL}\big(\operatorname{softmax}(T_n[P_n] / \tau) \,\|\,
              \operatorname{softmax}(S_n[P_n] / \tau)\big)

    Args:
        student_logits: S, one row for each group: the mean of the rows that it holds.
        teacher_logits: T; gets no gradient.
        student_ids: the student's token of each pair.
        teacher_ids: the teacher's token of the same pair.
        mapped: which of the P columns are pairs; ids elsewhere are not read, but must be in range.
        temperature: tau > 0, for both sides.
        weight: of each group; 1 if None.

    Returns:
        The sum over groups and the sum of their weights: a group without a pair adds 0 and is
        counted. `sums["unmapped_student"]` and `sums["unmapped_teacher"]` add up the probability
        (at temperature 1) that lies outside the pairs.

    Raises:
        ConfigError: the temperature is not above 0 and finite.

    Numerics: float32 accumulation; float64 stays. A constant added to a row changes nothing. A
    logit more than 1e4 tau below the best of its row's pairs, `-inf` included, counts as that and
    gets no gradient. Nothing is read back from the device.

    Source: arXiv:2502.11104. The released code has the two models change places in the second half
    of the columns, divides by tau on one side alone and averages over the columns; here neither.
    Oracle: tests/oracle/cdm.py.

    Example:
        >>> student = torch.tensor([[1.0, 0.0, 5.0]])
        >>> teacher = torch.tensor([[0.0, 1.0]])
        >>> pairs = torch.tensor([[0, 1]])
        >>> loss = cdm_loss(student, teacher, pairs, pairs, pairs >= 0)
        >>> loss.total, loss.count
        (tensor(0.4621), tensor(1.))
    """
    dtype = accumulation_dtype(student_logits, teacher_logits)
    teacher_logits = teacher_logits.detach().to(dtype)
    student = student_logits.gather(1, student_ids).to(dtype)
    norms = (student_logits.detach().to(dtype).logsumexp(1), teacher_logits.logsumexp(1))
    teacher = teacher_logits.gather(1, teacher_ids)
    return compare_pairs(student, teacher, mapped, norms, temperature=temperature, weight=weight)


def compare_pairs(
    student: Float[Tensor, "N P"],
    teacher: Float[Tensor, "N P"],
    mapped: Bool[Tensor, "N P"],
    norms: tuple[Float[Tensor, " N"], Float[Tensor, " N"]],
    *,
    temperature: float,
    weight: Float[Tensor, " N"] | None = None,
) -> LossSum:
    """Sum `cdm_loss` where the logits of the pairs have been taken out already.

    Args:
        student: the student's logit of each pair, with the graph.
        teacher: the teacher's.
        mapped: as in `cdm_loss`.
        norms: log-sum-exp of the whole rows, of the student and of the teacher.
        temperature: as in `cdm_loss`.
        weight: as in `cdm_loss`.

    Raises:
        ConfigError: as `cdm_loss`.
    """
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be above 0 and finite; got {temperature}")
    dtype = accumulation_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    weight = student.new_ones(student.shape[0]) if weight is None else weight.to(dtype)
    if student.shape[1] == 0:  # no group has a pair
        none = weight.sum()
        sums = {"unmapped_student": none, "unmapped_teacher": none}
        return LossSum(student.sum(), none, sums)
    q = _log_shares(student, mapped, temperature)
    p = _log_shares(teacher, mapped, temperature)
    each = (p.exp() * (p - q)).masked_fill(~mapped, 0.0).sum(1) * temperature**2
    sums = {
        "unmapped_student": (weight * _outside(student.detach(), mapped, norms[0])).sum(),
        "unmapped_teacher": (weight * _outside(teacher, mapped, norms[1])).sum(),
    }
    return LossSum((weight * each).sum(), weight.sum(), sums)


def row_norm_entropy(
    logits: Float[Tensor, "N V"], best: Float[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute the log-sum-exp of every row and the entropy of its softmax, both in nats.

    Args:
        logits: raw.
        best: each row's largest entry, if it is known.

    Numerics: float32 at least; `-inf` counts as probability 0.

    Example:
        >>> row_norm_entropy(torch.ones(1, 4))
        (tensor([2.3863]), tensor([1.3863]))
    """
    logits = logits.to(accumulation_dtype(logits))
    best = logits.amax(1) if best is None else best
    below = (logits - best.unsqueeze(1)).clamp_(min=FLOOR)
    share = below.exp()
    total = share.sum(1)
    log_total = total.log()
    return best + log_total, log_total - share.mul_(below).sum(1) / total


def row_summary(
    logits: Float[Tensor, "N V"], k: int
) -> tuple[Int64[Tensor, "N K"], Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Find the K largest entries of every row, its log-sum-exp and its entropy.

    Args:
        logits: raw, without NaN; gets no gradient.
        k: at least 1; K is the smaller of it and V.

    Returns:
        The ids as `topk.top_ids`, the others as `row_norm_entropy`.

    Numerics: as these two. On a CPU in float32 all three are made by one compiled loop
    (`kernels.row_summary`), with the same ids (the lower ids where equal entries compete for the
    last places) and entropies that keep more digits where a row has one large entry.

    Example:
        >>> row_summary(torch.ones(1, 4), 2)
        (tensor([[0, 1]]), tensor([2.3863]), tensor([1.3863]))
    """
    logits = logits.detach().to(accumulation_dtype(logits))
    if compiled(logits):
        rows = logits.contiguous().numpy()
        found = kernel.row_summary(rows, k, torch.get_num_threads())
        ids, norm, entropy = map(torch.from_numpy, found)
        return ids, norm.to(logits.dtype), entropy.to(logits.dtype)
    values, ids = top_values(logits, k)
    return ranked(values, ids), *row_norm_entropy(logits, values.amax(1))


def compiled(logits: Float[Tensor, "N V"]) -> bool:
    """Tell whether `row_summary` has a compiled loop for such logits."""
    on_cpu = logits.device.type == "cpu" and accumulation_dtype(logits) == torch.float32
    return on_cpu and kernel.available()


def group_rows(
    rows: Float[Tensor, "E V"],
    group: Int64[Tensor, " E"],
    weight: Float[Tensor, " E"],
    count: int,
) -> Float[Tensor, "N V"]:
    """Add the rows of each group, each with its weight.

    Args:
        rows: any values, logits for instance.
        group: group of each row, below `count`.
        weight: of each row; those of a group add up to 1 where a mean is wanted.
        count: N.

    Example:
        >>> rows, group = torch.tensor([[2.0], [4.0], [5.0]]), torch.tensor([0, 0, 1])
        >>> group_rows(rows, group, torch.tensor([0.5, 0.5, 1.0]), 2)
        tensor([[3.],
                [5.]])
    """
    rows = rows.to(accumulation_dtype(rows))
    scaled = rows * weight.to(rows.dtype).unsqueeze(1)
    return rows.new_zeros(count, rows.shape[1]).index_add(0, group, scaled)


def _log_shares(
    logits: Float[Tensor, "N P"], mapped: Bool[Tensor, "N P"], temperature: float
) -> Float[Tensor, "N P"]:
    """The log-softmax over the pairs of a row; what stands elsewhere means nothing."""
    # Filled before anything else: a NaN or -inf there must reach neither value nor gradient.
    kept = logits.masked_fill(~mapped, -torch.inf)
    best = kept.detach().amax(1, keepdim=True)
    best = best.masked_fill(best == -torch.inf, 0.0)
    below = ((kept - best) / temperature).clamp(min=FLOOR).masked_fill(~mapped, 2 * FLOOR)
    return below.log_softmax(1)


def _outside(
    logits: Float[Tensor, "N P"], mapped: Bool[Tensor, "N P"], norm: Float[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """The probability that lies outside the pairs."""
    share = (logits - norm.to(logits.dtype).unsqueeze(1)).exp().masked_fill(~mapped, 0.0)
    return (1.0 - share.sum(1)).clamp(min=0.0)
