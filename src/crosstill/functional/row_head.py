"""An output head for losses of whole rows, block by block: the logits of a batch never exist.

For objectives that read a student's distribution at some positions (prefix KL, say). A block's
logits are made, its loss and the gradient of its logits with them, and both are multiplied back
into hidden states and output matrix before the next block is looked at: three products in all, as
for the plain form, and none twice.

Axes: B sequences, T tokens, D hidden, V vocabulary, S rows of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosstill.functional.head import (
    Head,
    HeadMatrix,
    add_product,
    cut_head,
    product_dtype,
    shaped_logits,
)
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype


@dataclass(frozen=True)
class RowTerm:
    """Some rows, and a loss of their logits.

    Attributes:
        rows: sequence and position of each row, both [S].
        loss: from the rows' logits [S, V], float32 at least, to the sum over them.
    """

    rows: tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]
    loss: Callable[[Float[Tensor, "S V"]], LossSum]


def fused_rows(
    hidden: Float[Tensor, "B T D"],
    head: Head,
    terms: Sequence[RowTerm],
    *,
    vocab_size: int | None = None,
) -> LossSum:
    """Sum losses of rows from hidden states, one term's logits at a time.

    Equal in value and gradient to the same losses of the logits as a whole.

    Args:
        hidden: what the output matrix is applied to.
        head: the output matrix, and what is done to the logits after it.
        terms: a row may be in several of them.
        vocab_size: rows of the matrix beyond it get no probability and no gradient.

    Returns:
        The sums over all terms. 0 with a graph where there is no term.

    Numerics: products in the dtype of the hidden states (or autocast's), everything else and the
    sum of the matrix's gradient in float32 at least. The gradients are made in the forward pass and
    serve one backward pass.

    Example:
        >>> hidden = torch.ones(1, 2, 3, requires_grad=True)
        >>> row = torch.tensor([0]), torch.tensor([1])
        >>> term = RowTerm(row, lambda logits: LossSum(logits.sum(), torch.tensor(1.0)))
        >>> fused_rows(hidden, HeadMatrix(torch.ones(4, 3)), [term]).total
        tensor(12., grad_fn=<_FusedRowsBackward>)
    """
    job = _Job(head, list(terms), vocab_size, product_dtype(hidden), torch.is_grad_enabled(), {})
    total, count = _FusedRows.apply(hidden, head.weight, head.bias, job)
    return LossSum(total, count, job.sums)


@dataclass(frozen=True)
class _Job:
    """Everything that the autograd function needs beside the tensors it differentiates."""

    head: Head
    terms: list[RowTerm]
    vocab_size: int | None
    dtype: torch.dtype
    wants_gradient: bool
    sums: dict[str, Tensor]


class _FusedRows(torch.autograd.Function):
    """The gradients are made in `forward`; `backward` multiplies them by what comes in."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job
    ) -> tuple[Tensor, Tensor]:
        wanted = [job.wants_gradient and needed for needed in ctx.needs_input_grad[:3]]
        run = _Run(hidden, weight, bias, job, wanted)
        with torch.autocast(hidden.device.type, enabled=False):
            for term in job.terms:
                run.add(term)
        ctx.gradients = [
            None if made is None or like is None else made.view_as(like).to(like.dtype)
            for made, like in zip(run.gradients, (hidden, weight, bias), strict=True)
        ]
        ctx.mark_non_differentiable(run.count)
        return run.total, run.count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor, _count: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of a fused head serve one backward pass; compute the loss again, "
                "or use the plain form on logits"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # In place: a copy of the matrix's gradient would be as large as the matrix.
        return (*(None if g is None else g.mul_(incoming.to(g.dtype)) for g in gradients), None)


class _Run:
    """One pass over the terms: the sums so far and the gradients so far."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job, wanted: list[bool]
    ) -> None:
        self.job, self.wanted, self.length = job, wanted, hidden.shape[1]
        self.head: HeadMatrix = cut_head(job.head, job.vocab_size, job.dtype)
        self.flat = hidden.detach().flatten(0, 1)
        wide = accumulation_dtype(hidden)
        self.total, self.count = hidden.new_zeros(2, dtype=wide).unbind()
        self.gradients = [
            torch.zeros_like(like, dtype=wide) if want and like is not None else None
            for want, like in zip(wanted, (self.flat, weight, bias), strict=True)
        ]

    def add(self, term: RowTerm) -> None:
        """Compute a term's loss and add its gradients."""
        rows = term.rows[0] * self.length + term.rows[1]
        states = self.flat[rows].to(self.job.dtype)
        products = torch.nn.functional.linear(states, self.head.weight)
        wanted = any(self.wanted)
        products = products.to(self.total.dtype).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            part = term.loss(shaped_logits(products, self.head))
        self.total = self.total + part.total.detach()
        self.count = self.count + part.count
        for name, value in part.sums.items():
            self.job.sums[name] = self.job.sums.get(name, 0.0) + value.detach()
        if wanted:
            (gradient,) = torch.autograd.grad(part.total, products)
            self._spread(rows, states, gradient)

    def _spread(self, rows: Tensor, states: Tensor, gradient: Tensor) -> None:
        to_hidden, to_weight, to_bias = self.gradients
        if to_bias is not None:
            to_bias[: gradient.shape[1]] += gradient.sum(0)
        gradient = gradient.to(self.job.dtype)
        if to_hidden is not None:
            back = gradient @ self.head.weight
            to_hidden.index_add_(0, rows, back.to(to_hidden.dtype))
        if to_weight is not None:
            add_product(to_weight[: gradient.shape[1]], gradient, states)
