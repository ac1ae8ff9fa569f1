"""Sums over rows whose gradient is made in the forward pass, a block of rows at a time.

For losses of wide rows whose parts cost more than their gradient: nothing of a block outlives it
but its gradient, which has the size of its input.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

ELEMENTS = {"cpu": 1 << 22}
"""Elements of a block, by device: what stays near the processor."""

ELEMENTS_ELSEWHERE = 1 << 26


def rows_in_block(width: int, device: torch.device) -> int:
    """Choose how many rows of so many elements make a block.

    Example:
        >>> rows_in_block(1 << 20, torch.device("cpu"))
        4
    """
    return max(1, ELEMENTS.get(device.type, ELEMENTS_ELSEWHERE) // max(width, 1))


def sum_eagerly(
    term: Callable[..., Float[Tensor, " K"]], block: int, *tensors: Tensor
) -> Float[Tensor, " K"]:
    """Sum a term over blocks of rows; the first sum gets a gradient, made in the same pass.

    Args:
        term: takes a block of each tensor, gives K sums over its rows. Only the first is
            differentiated, so the rest are for reports.
        block: rows in a block, at least 1.
        tensors: each with N rows. Those that require a gradient get one.

    Returns:
        The sums; zero, with a graph wherever a tensor requires a gradient, where there is no row.

    Numerics: not differentiable twice.

    Example:
        >>> rows = torch.arange(5.0, requires_grad=True)
        >>> total = sum_eagerly(lambda part: part.square().sum().unsqueeze(0), 2, rows)[0]
        >>> total.detach(), torch.autograd.grad(total, rows)
        (tensor(30.), (tensor([0., 2., 4., 6., 8.]),))
    """
    return _Eager.apply(term, block, torch.is_grad_enabled(), *tensors)


class _Eager(torch.autograd.Function):
    """Autograd's view of `sum_eagerly`."""

    @staticmethod
    def forward(
        ctx: Any, term: Callable[..., Tensor], block: int, enabled: bool, *tensors: Tensor
    ) -> Tensor:
        wanted = [enabled and needed for needed in ctx.needs_input_grad[3:]]
        gradients = [
            torch.zeros_like(tensor) if want else None
            for tensor, want in zip(tensors, wanted, strict=True)
        ]
        # An empty input is one empty block, so that the sums have their number and dtype.
        starts = range(0, max(len(tensors[0]), 1), block)
        sums = [_block(term, tensors, gradients, slice(at, at + block)) for at in starts]
        ctx.save_for_backward(*(gradient for gradient in gradients if gradient is not None))
        ctx.wanted = wanted
        return torch.stack(sums).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        made = iter(ctx.saved_tensors)
        scaled = (next(made) if want else None for want in ctx.wanted)
        scaled = (g if g is None else g * incoming[0].to(g.dtype) for g in scaled)
        return None, None, None, *scaled


def _block(
    term: Callable[..., Tensor],
    tensors: tuple[Tensor, ...],
    gradients: list[Tensor | None],
    rows: slice,
) -> Tensor:
    """One block's sums; its gradients are written into their rows."""
    parts = [tensor[rows].detach() for tensor in tensors]
    asked = [(part, made) for part, made in zip(parts, gradients, strict=True) if made is not None]
    with torch.set_grad_enabled(bool(asked)):
        leaves = [part.requires_grad_() for part, _ in asked]
        sums = term(*parts)
        found = torch.autograd.grad(sums[0], leaves, allow_unused=True) if asked else ()
    for (_, made), gradient in zip(asked, found, strict=True):
        if gradient is not None:
            made[rows] = gradient
    return sums.detach()
