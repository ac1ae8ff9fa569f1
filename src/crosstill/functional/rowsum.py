"""What losses over rows of logits have in common: safe distributions, checks, sums in blocks.

Axes: N rows, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosstill.errors import ConfigError
from crosstill.functional.eager import rows_in_block, sum_eagerly
from crosstill.functional.numerics import FLOOR, accumulation_dtype

RowLosses = Callable[..., Sequence[Tensor]]
"""(learned blocks, then given blocks) -> values [n] to sum; the first alone has a gradient."""


def sum_rows(
    each: RowLosses, learned: Sequence[Tensor], given: Sequence[Tensor], *, width: int
) -> tuple[Tensor, ...]:
    """Sum what `each` says of every row.

    Args:
        each: gets the blocks of `learned` and then those of `given`, floats in the accumulation
            dtype, and returns one [n] tensor for each sum. It must treat rows one by one.
        learned: tensors [N, ...] that get the gradient of the first sum.
        given: tensors [N, ...] without a gradient.
        width: V, the widest temporary of `each` per row; it sets how many rows a block has.

    Returns:
        The sums, in the accumulation dtype: the first with a graph, the others without.

    Numerics: the gradient is differentiable once. Summed in float32 at least.

    Example:
        >>> x = torch.ones(3, 2, requires_grad=True)
        >>> total, = sum_rows(lambda x: [x.square().sum(-1)], [x], [], width=2)
        >>> total.item(), torch.autograd.grad(total, x)[0][0]
        (6.0, tensor([2., 2.]))
    """
    dtype = accumulation_dtype(*(one for one in learned))

    def term(*block: Tensor) -> Tensor:
        cast = [one.to(dtype) if one.is_floating_point() else one for one in block]
        return torch.stack([value.sum().to(dtype) for value in each(*cast)])

    rows = rows_in_block(width, learned[0].device)
    total, *others = sum_eagerly(term, rows, *learned, *(one.detach() for one in given)).unbind()
    return total, *(one.detach() for one in others)


def log_distribution(
    logits: Float[Tensor, "*rows V"], temperature: float = 1.0
) -> Float[Tensor, "*rows V"]:
    """Compute the log of the softmax, safe where logits are `-inf`.

    Returns:
        Nats. Values below `FLOOR`, `-inf` among them, count as `FLOOR` and get no gradient, so
        that a token which is impossible for one model costs much and not everything. A row of
        nothing but `-inf` counts as uniform and gets no gradient.

    Example:
        >>> log_distribution(torch.tensor([0.0, 0.0, -torch.inf]))
        tensor([-6.9315e-01, -6.9315e-01, -1.0000e+04])
    """
    return cast(Tensor, _LogDistribution.apply(logits, temperature))


def row_kl(
    log_a: Float[Tensor, "*rows V"], log_b: Float[Tensor, "*rows V"]
) -> Float[Tensor, "*rows"]:
    """Compute KL(a || b) of each row from the logs of two distributions.

    Example:
        >>> row_kl(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
        tensor(0.1438)
    """
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def check_rows(student_logits: Tensor, teacher_logits: Tensor, *, same_width: bool) -> None:
    """Refuse rows that do not belong together.

    Raises:
        ConfigError: the numbers of rows differ, or those of columns where they must be equal.
    """
    shapes = tuple(student_logits.shape), tuple(teacher_logits.shape)
    if student_logits.ndim != 2 or teacher_logits.ndim != 2 or shapes[0][0] != shapes[1][0]:
        raise ConfigError(
            f"expected as many rows of teacher logits [N, Vt] as of student logits [N, Vs]; got "
            f"{shapes[1]} and {shapes[0]}"
        )
    if same_width and shapes[0][1] != shapes[1][1]:
        raise ConfigError(
            f"expected logits over one vocabulary; got {shapes[0][1]} student columns and "
            f"{shapes[1][1]} teacher columns. Cut surplus columns, or use a method for two "
            "vocabularies, such as xtoken"
        )


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not a positive finite number.

    Raises:
        ConfigError: with the value that came.
    """
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(f"temperature must be above 0 and finite; got {temperature}")


class _LogDistribution(torch.autograd.Function):
    """Autograd's view of `log_distribution`: two passes over the logits less than the plain ops."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        nothing = logits.amax(-1, keepdim=True) == -torch.inf
        scaled = logits if temperature == 1.0 else logits / temperature
        made = torch.log_softmax(scaled, -1)
        made = made.masked_fill_(nothing, -math.log(logits.shape[-1])).clamp_(min=FLOOR)
        ctx.save_for_backward(made, nothing)
        ctx.temperature = temperature
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        made, nothing = ctx.saved_tensors
        outer = outer.masked_fill((made <= FLOOR) | nothing, 0.0)
        found = outer.sub_(made.exp().mul_(outer.sum(-1, keepdim=True)))
        found = found.masked_fill_(nothing, 0.0)
        return found if ctx.temperature == 1.0 else found.div_(ctx.temperature), None
