"""MultiLevelOT: the most likely tokens of a whole answer, ranked, and transport between its rows.

Axes: N rows of logits, n rows of one sequence, Vs and Vt vocabularies, K kept columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crosstill.errors import ConfigError
from crosstill.functional.eager import rows_in_block
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import FLOOR, accumulation_dtype

DEVIATION_FLOOR = 1e-4
"""Added to the standard deviation that a row of logits is divided by; the authors' value."""

VARIANCE_FLOOR = 1e-20
"""A row whose logits vary less counts as constant, and its deviation gets no gradient."""

COMPATIBLE_SHARE = 0.001
"""The authors' factor on a sequence's transport cost, which they do not divide by its rows."""


@dataclass(frozen=True)
class OtForm:
    """The options of `multilevelot_loss`.

    Attributes:
        top_k: columns that are kept of either side.
        log_weight: of the logarithmic part.
        transport_weight: of the transport between rows.
        regularisation: of the transport; the larger, the more it is spread.
        rounds: of normalising rows and columns of the transport plan.
        compatible: compute what the authors' code computes; see `multilevelot_loss`.

    Raises:
        ConfigError: a value is outside its range.
    """

    top_k: int = 50
    log_weight: float = 0.1
    transport_weight: float = 0.1
    regularisation: float = 0.1
    rounds: int = 10
    compatible: bool = False

    def __post_init__(self) -> None:
        for name, value in (("top_k", self.top_k), ("rounds", self.rounds)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
        for name, value in (
            ("log_weight", self.log_weight),
            ("transport_weight", self.transport_weight),
        ):
            if not 0.0 <= value < math.inf:
                raise ConfigError(f"{name} must be at least 0 and finite; got {value}")
        if not 0.0 < self.regularisation < math.inf:
            raise ConfigError(
                f"regularisation must be above 0 and finite; got {self.regularisation}"
            )


def multilevelot_loss(
    student_logits: Sequence[Tensor], teacher_logits: Sequence[Tensor], form: OtForm
) -> LossSum:
    r"""Compare the K likeliest tokens of each answer by rank, and its rows by transport.

    .. math:: \sum_b \Big( \sum_i \sum_k |s_{ik} - t_{ik}|
              + w_l \sum_i KL(\hat t_i \,\|\, \hat s_i)
              + w_t \sum_{ij} P_{ij} \|\hat s_i - \hat t_j\|_1 \Big)

    The logits of each row are divided by their standard deviation before the softmax. Of either
    side the K columns with the largest probability, summed over the rows of the sequence, are
    kept in that order: s and t. A hat divides a row by its sum. P is the entropic transport plan
    between the rows of the two sides, with row and column sums of 1.

    Args:
        student_logits: raw, [n, Vs] for each of B sequences; row i is compared with the teacher's
            row i. A sequence may have no rows.
        teacher_logits: raw, [m, Vt] for each; get no gradient. What one side has more in a
            sequence is left out.
        form: the options. With `compatible`, the authors' code is followed: columns are chosen
            over the whole batch, the hats are second softmaxes (of s/2 and t/2 in the transport),
            the logarithmic part is the cross entropy of the teacher under the student's weights,
            rows of zeros fill every sequence to the longest of the batch and take part in those
            two, and each part is divided as there: total / count is then the authors' value.

    Returns:
        The sum over sequences and the number of compared rows. `sums` has the three parts before
        their weights: "absolute", "logarithmic" and "transport".

    Raises:
        ConfigError: there are not as many sequences on both sides, or none.

    Numerics: float32 at least. The softmax of a block of rows is made again in the backward pass.
    An impossible token (`-inf`) does not enter the standard deviation. The transport is not zero
    for equal models, because an entropic plan is spread.

    Source: Cui et al., arXiv:2412.14528. Oracle: tests/oracle/multilevelot.py.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0, 3.0]])
        >>> loss = multilevelot_loss([logits], [logits.flip(1)], OtForm(top_k=2))
        >>> loss.total.item() < 1e-6, loss.count
        (True, tensor(1.))
    """
    if len(student_logits) != len(teacher_logits) or not len(student_logits):
        raise ConfigError(
            "expected the rows of as many sequences on both sides, at least one; got "
            f"{len(student_logits)} and {len(teacher_logits)}"
        )
    pairs = [(s, t.detach()) for s, t in zip(student_logits, teacher_logits, strict=True)]
    compared = sum(min(len(s), len(t)) for s, t in pairs)
    if form.compatible and compared:
        sums = compared * _as_the_authors([(s, t) for s, t in pairs if len(s) and len(t)], form)
    else:
        sums = torch.stack([_sequence(s, t, form) for s, t in pairs]).sum(0)
    total = sums[0] + form.log_weight * sums[1] + form.transport_weight * sums[2]
    absolute, logarithmic, moved = sums.detach().unbind()
    parts = {"absolute": absolute, "logarithmic": logarithmic, "transport": moved}
    return LossSum(total, total.detach().new_full((), compared), parts)


def _sequence(student: Tensor, teacher: Tensor, form: OtForm) -> Float[Tensor, " 3"]:
    """The three parts of one sequence, each summed over its rows."""
    rows = min(len(student), len(teacher))
    dtype = accumulation_dtype(student, teacher)
    if rows == 0:
        return student.sum(dtype=dtype).mul(0.0).expand(3)
    student, teacher = student[:rows], teacher[:rows]
    kept = min(form.top_k, student.shape[1], teacher.shape[1])
    s = kept_logprobs(student, likeliest([student], kept, dtype), dtype)
    t = kept_logprobs(teacher, likeliest([teacher], kept, dtype), dtype)
    absolute = (s.exp() - t.exp()).abs().sum()
    s = s - torch.logsumexp(s, 1, keepdim=True)
    t = t - torch.logsumexp(t, 1, keepdim=True)
    logarithmic = (t.exp() * (t - s)).sum()
    return torch.stack([absolute, logarithmic, transport(s.exp(), t.exp(), form)])


def _as_the_authors(pairs: list[tuple[Tensor, Tensor]], form: OtForm) -> Float[Tensor, " 3"]:
    """The three parts as the authors' code divides them."""
    dtype = accumulation_dtype(*(side for pair in pairs for side in pair))
    kept = min(form.top_k, pairs[0][0].shape[1], pairs[0][1].shape[1])
    columns = [likeliest([pair[k] for pair in pairs], kept, dtype) for k in range(2)]
    longest = max(len(side) for pair in pairs for side in pair)
    absolute, logarithmic, moved = [], [], []
    for pair in pairs:
        s, t = (kept_logprobs(pair[k], columns[k], dtype).exp() for k in range(2))
        rows = min(len(s), len(t))
        absolute.append((s[:rows] - t[:rows]).abs().sum() / max(rows, 1))
        s, t = (torch.nn.functional.pad(x, (0, 0, 0, longest - len(x))) for x in (s, t))
        logarithmic.append(-(s.softmax(1) * t.log_softmax(1)).sum() / longest)
        halves = (s / 2).softmax(1), (t / 2).softmax(1)
        moved.append(COMPATIBLE_SHARE * len(pairs) * transport(*halves, form))
    return torch.stack([torch.stack(part).mean() for part in (absolute, logarithmic, moved)])


@torch.no_grad()
def likeliest(
    logits: Sequence[Tensor], count: int, dtype: torch.dtype
) -> Int64[Tensor, " {count}"]:
    """Find the columns with the largest probability summed over all rows, largest first.

    Example:
        >>> likeliest([torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, 2.0]])], 2, torch.float32)
        tensor([1, 2])
    """
    width = logits[0].shape[1]
    block = rows_in_block(width, logits[0].device)
    parts = [part for rows in logits for part in rows.split(block)]
    total = torch.stack([scaled_logprobs(part, dtype).exp().sum(0) for part in parts]).sum(0)
    return total.topk(count).indices


def kept_logprobs(
    logits: Float[Tensor, "n V"], columns: Int64[Tensor, " K"], dtype: torch.dtype
) -> Float[Tensor, "n K"]:
    """Compute `scaled_logprobs` of some columns, a block of rows at a time.

    Example:
        >>> kept_logprobs(torch.zeros(1, 4), torch.tensor([2]), torch.float32)
        tensor([[-1.3863]])
    """

    def term(part: Tensor) -> Tensor:
        return scaled_logprobs(part, dtype)[:, columns]

    parts = logits.split(rows_in_block(logits.shape[1], logits.device))
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return torch.cat([term(part) for part in parts])
    return torch.cat(
        [checkpoint(term, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    )


def scaled_logprobs(logits: Float[Tensor, "n V"], dtype: torch.dtype) -> Float[Tensor, "n V"]:
    """Divide rows of logits by their standard deviation and take the log-softmax.

    The deviation is that of a sample (n - 1), over the tokens that are possible; 1e-4 is added.

    Example:
        >>> scaled_logprobs(torch.tensor([[0.0, 2.0, -torch.inf]]), torch.float32).exp()
        tensor([[0.1956, 0.8044, 0.0000]])
    """
    logits = logits.to(dtype)
    impossible = logits == -torch.inf
    # Filled before anything is computed: -inf times 0 would be NaN in the gradient.
    filled = logits.masked_fill(impossible, 0.0)
    count = (~impossible).sum(1, keepdim=True).to(dtype)
    mean = filled.sum(1, keepdim=True) / count.clamp(min=1.0)
    gap = (filled - mean).masked_fill(impossible, 0.0)
    variance = gap.square().sum(1, keepdim=True) / (count - 1.0).clamp(min=1.0)
    deviation = variance.clamp(min=VARIANCE_FLOOR).sqrt() + DEVIATION_FLOOR
    scaled = (filled / deviation).masked_fill(impossible, -torch.inf)
    return torch.log_softmax(scaled, 1).clamp(min=FLOOR)


def transport(
    student: Float[Tensor, "n K"], teacher: Float[Tensor, "m K"], form: OtForm
) -> Float[Tensor, ""]:
    """Sum an entropic transport plan times the L1 distances between rows.

    The plan begins as exp(-distance / regularisation); rows and then columns are divided by their
    sums, `form.rounds` times.

    Example:
        >>> one = torch.tensor([[0.5, 0.5]])
        >>> transport(one, torch.tensor([[0.25, 0.75]]), OtForm())
        tensor(0.5000)
    """
    cost = torch.cdist(student, teacher, p=1.0)
    plan = -cost / form.regularisation
    for _ in range(form.rounds):
        plan = plan - torch.logsumexp(plan, 1, keepdim=True)
        plan = plan - torch.logsumexp(plan, 0, keepdim=True)
    return (plan.exp() * cost).sum()
