"""Universal logit distillation: the probabilities of both models, sorted, and their L1 distance.

Axes: N rows of logits, Vs and Vt vocabularies of student and teacher, K entries that are kept.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosstill.errors import ConfigError
from crosstill.functional.eager import rows_in_block, sum_eagerly
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype
from crosstill.kernels import sorted_l1 as kernel


def uld_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    top_k: int = 0,
) -> LossSum:
    r"""Sum the L1 distance between sorted probabilities over rows.

    .. math:: \sum_n \sum_r \big| p^S_{n,(r)} - p^T_{n,(r)} \big|

    with :math:`p_{(r)}` the r-th largest probability of a row, 0 beyond the vocabulary. It is the
    cost of moving one set of probabilities onto the other where every move costs its length; which
    token a probability belongs to plays no role.

    Args:
        student_logits: raw.
        teacher_logits: raw; row n is compared with the student's row n. Gets no gradient.
        student_temperature: divides the student's logits; above 0.
        teacher_temperature: divides the teacher's.
        top_k: compare only so many of the largest on either side; 0 compares all.

    Returns:
        The sum, without unit, and the number of rows. A row's value lies between 0 and 2. With
        `top_k`, `sums["error_bound"]` is the mass that was left out on both sides: by at most so
        much the exact value is larger.

    Raises:
        ConfigError: a temperature is not above 0, or `top_k` is below 0.

    Numerics: float32 also for bfloat16 logits; float64 stays. On a CPU in float32 the rows are
    compared by counting instead of sorting (`kernels.sorted_l1`), with the same result. Equal
    entries of a row get equal derivatives, the mean over their ranks. The gradient is made in the
    forward pass, in blocks of rows; it is not differentiable again.

    Source: Boizard et al., arXiv:2402.12030, equation for the Wasserstein distance at uniform
    cost. The paper divides by the rows of a sequence and then by the sequences; here by all rows.
    Oracle: tests/oracle/uld.py.

    Example:
        >>> student = torch.tensor([[0.7, 0.3]]).log()
        >>> teacher = torch.tensor([[0.2, 0.5, 0.3]]).log()
        >>> uld_loss(student, teacher).total
        tensor(0.4000)
    """
    check_uld(student_temperature, teacher_temperature, top_k)
    dtype = accumulation_dtype(student_logits, teacher_logits)

    def term(student: Tensor, teacher: Tensor) -> Tensor:
        p = probabilities(student, student_temperature, dtype)
        q = probabilities(teacher, teacher_temperature, dtype)
        if not top_k:
            return sorted_l1(p, q).sum().unsqueeze(0)
        distance, left = truncated_l1(p, q, top_k)
        return torch.stack([distance.sum(), left.sum().detach()])

    width = student_logits.shape[1] + teacher_logits.shape[1]
    sums = sum_eagerly(
        term, rows_in_block(width, student_logits.device), student_logits, teacher_logits.detach()
    )
    count = sums.new_full((), len(student_logits))
    bound = {"error_bound": sums[1].detach()} if top_k else {}
    return LossSum(sums[0], count, bound)


def check_uld(student_temperature: float, teacher_temperature: float, top_k: int) -> None:
    """Refuse options that `uld_loss` cannot take.

    Raises:
        ConfigError: with the option and what came.
    """
    for name, value in (("student", student_temperature), ("teacher", teacher_temperature)):
        if not 0.0 < value < float("inf"):
            raise ConfigError(f"{name}_temperature must be above 0 and finite; got {value}")
    if top_k < 0:
        raise ConfigError(f"top_k must be at least 0, and 0 keeps every token; got {top_k}")


def probabilities(
    logits: Float[Tensor, "N V"], temperature: float, dtype: torch.dtype
) -> Float[Tensor, "N V"]:
    """Turn logits into probabilities at a temperature.

    Example:
        >>> probabilities(torch.tensor([[0.0, 2.0]]).log(), 0.5, torch.float32)
        tensor([[0., 1.]])
    """
    logits = logits.to(dtype)
    return torch.softmax(logits if temperature == 1.0 else logits / temperature, -1)


def truncated_l1(
    student: Float[Tensor, "N Vs"], teacher: Float[Tensor, "N Vt"], top_k: int
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute `sorted_l1` of the largest entries, and the mass of all others on both sides.

    The exact distance is never smaller, and larger by at most that mass.

    Example:
        >>> p, q = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.5, 0.3, 0.2]])
        >>> truncated_l1(p, q, 1)
        (tensor([0.1000]), tensor([0.9000]))
    """
    p = student.topk(min(top_k, student.shape[1]), -1).values
    q = teacher.topk(min(top_k, teacher.shape[1]), -1).values
    left = (student.sum(-1) - p.sum(-1)) + (teacher.sum(-1) - q.sum(-1))
    return (_widened(p, top_k) - _widened(q, top_k)).abs().sum(-1), left.clamp(min=0.0)


def sorted_l1(
    student: Float[Tensor, "N Vs"], teacher: Float[Tensor, "N Vt"]
) -> Float[Tensor, " N"]:
    r"""Sum :math:`|s_{(r)} - t_{(r)}|` over the ranks r of each row, the shorter padded with zeros.

    Args:
        student: from 0 to 1.
        teacher: from 0 to 1; gets no gradient.

    Returns:
        One distance a row.

    Numerics: exact. Where the float32 kernel can run (on a CPU) nothing is sorted as a whole.

    Oracle: tests/oracle/uld.py.

    Example:
        >>> sorted_l1(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.6, 0.0, 0.4]]))
        tensor([0.6000])
    """
    return _SortedL1.apply(student, teacher.detach())


class _SortedL1(torch.autograd.Function):
    """Autograd's view of `sorted_l1`."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        counted = student.device.type == "cpu" and student.dtype == teacher.dtype == torch.float32
        compare = _compare_by_counting if counted and kernel.available() else compare_by_sorting
        value, slope = compare(student, teacher)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * incoming.unsqueeze(-1), None


def _compare_by_counting(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    value, slope = kernel.sorted_l1(
        student.detach().contiguous().numpy(),
        teacher.detach().contiguous().numpy(),
        threads=torch.get_num_threads(),
    )
    return torch.from_numpy(value).to(student.dtype), torch.from_numpy(slope)


def compare_by_sorting(
    student: Float[Tensor, "N Vs"], teacher: Float[Tensor, "N Vt"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N Vs"]]:
    """Compute the distances and their derivatives by each of the student's entries.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.6, 0.2, 0.2]])
        >>> compare_by_sorting(p, q)[1]
        tensor([[ 0.,  0., -1.]])
    """
    with torch.no_grad():
        values, place = student.sort(-1, descending=True)
        others = teacher.sort(-1, descending=True).values
        width = max(student.shape[1], teacher.shape[1])
        gap = _widened(values, width) - _widened(others, width)
        sign = gap[:, : values.shape[1]].sign()
        # Equal entries stand together: number the runs, and give each run its mean.
        run = torch.zeros_like(place)
        run[:, 1:] = (values[:, 1:] != values[:, :-1]).cumsum(-1)
        total = torch.zeros_like(values).scatter_add_(-1, run, sign)
        size = torch.zeros_like(values).scatter_add_(-1, run, torch.ones_like(sign))
        mean = (total / size.clamp(min=1.0)).gather(-1, run)
        return gap.abs().sum(-1), torch.empty_like(values).scatter_(-1, place, mean)


def _widened(values: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
