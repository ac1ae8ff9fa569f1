"""Sums over rows of logits, a block of rows at a time, with the gradient made on the way.

Axes: N rows, V vocabulary. A loss over whole vocabularies needs many numbers for each logit; kept
for the backward pass they would be several times the logits. Here each block's gradient is taken
as soon as its value is known, so that nothing stays but the gradient itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosstill.errors import ConfigError
from crosstill.functional.numerics import FLOOR, accumulation_dtype

BLOCK_ELEMENTS = 1 << 23
"""Numbers in one temporary of a block: 32 MiB of float32."""

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
    rows = max(1, BLOCK_ELEMENTS // max(width, 1))
    given = [one.detach() for one in given]
    return cast("tuple[Tensor, ...]", _SumRows.apply(each, len(learned), rows, *learned, *given))


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
    nothing = logits.amax(-1, keepdim=True) == -torch.inf
    return torch.log_softmax(logits.masked_fill(nothing, 0.0) / temperature, -1).clamp(min=FLOOR)


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


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, each: RowLosses, learned: int, rows: int, *tensors: Tensor) -> Any:
        dtype = accumulation_dtype(*(one for one in tensors if one.is_floating_point()))
        wanted = [ctx.needs_input_grad[3 + i] for i in range(learned)]
        gradients = [torch.empty_like(tensors[i]) if wanted[i] else None for i in range(learned)]
        sums: list[Tensor] = []
        for start in range(0, max(tensors[0].shape[0], 1), rows):
            block = [one[start : start + rows].detach() for one in tensors]
            sources = [block[i].requires_grad_() for i in range(learned) if wanted[i]]
            with torch.enable_grad():
                cast = [one.to(dtype) if one.is_floating_point() else one for one in block]
                values = [value.sum() for value in each(*cast)]
            if sources:
                found = torch.autograd.grad(
                    values[0], sources, allow_unused=True, materialize_grads=True
                )
                targets = [one for one in gradients if one is not None]
                for target, part in zip(targets, found, strict=True):
                    target[start : start + rows] = part
            values = [value.detach() for value in values]
            sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*sums[1:])
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        found = [None if one is None else one * outer[0] for one in ctx.saved_tensors]
        return (None, None, None, *found, *[None] * (len(ctx.needs_input_grad) - 3 - len(found)))
