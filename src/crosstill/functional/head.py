"""One block of an output head: logits, their normaliser, and their gradient, all in one buffer.

Axes: N rows of hidden states, D hidden, V vocabulary. Products run in the dtype of the hidden
states, everything after them in float32 (float64 for float64).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from crosstill.functional.numerics import accumulation_dtype

BLOCK_BYTES = 128 * 2**20
"""Size of a block's buffer where the caller names no number of rows."""

STRIP_BYTES = 16 * 2**20
"""On a CPU, element-wise steps work on strips of rows of this size, to reuse cache and scratch."""

EXACT_ROWS = 16
"""Rows whose boundary mass underflowed are computed again, so many at a time."""


@runtime_checkable
class Head(Protocol):
    """An output head: `logits = softcap(logit_scale * (hidden @ weight.T + bias))`."""

    @property
    def weight(self) -> Tensor:
        """[V, D]; the bias, if any, is [V]."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """[V], or None."""
        ...

    @property
    def logit_scale(self) -> float:
        """Factor on the logits; 1.0 for most models."""
        ...

    @property
    def softcap(self) -> float | None:
        """The cap c in c * tanh(logits / c), or None."""
        ...


@dataclass(frozen=True)
class HeadMatrix:
    """A head given by its parts; see `Head`.

    Attributes:
        weight: the output matrix.
        bias: added to the products, before scaling; None where there is none.
        logit_scale: multiplies the logits (Cohere; Granite divides).
        softcap: c in c * tanh(logits / c) (Gemma-2), None where the logits are not capped.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    logit_scale: float = 1.0
    softcap: float | None = None


def row_logits(hidden: Float[Tensor, "*rows D"], head: Head) -> Float[Tensor, "*rows V"]:
    """Compute the logits of some rows: the plain form, with a graph.

    Example:
        >>> row_logits(torch.ones(1, 2), HeadMatrix(torch.ones(3, 2), logit_scale=0.5))
        tensor([[1., 1., 1.]])
    """
    return shaped_logits(nn.functional.linear(hidden, head.weight), head)


def shaped_logits(products: Float[Tensor, "*rows V"], head: Head) -> Float[Tensor, "*rows V"]:
    """Make logits of the products with the output matrix: bias, scale and cap.

    Example:
        >>> shaped_logits(torch.ones(1, 2), HeadMatrix(torch.ones(2, 2), logit_scale=0.5))
        tensor([[0.5000, 0.5000]])
    """
    logits = products if head.bias is None else products + head.bias
    if head.logit_scale != 1.0:
        logits = logits * head.logit_scale
    if head.softcap is None:
        return logits
    return head.softcap * torch.tanh(logits / head.softcap)


def default_block(vocab_size: int) -> int:
    """Choose how many rows make a block of `BLOCK_BYTES`, between 16 and 1,024.

    Example:
        >>> default_block(131072)
        256
    """
    return max(16, min(1024, BLOCK_BYTES // (4 * max(vocab_size, 1))))


def cut_head(head: Head, vocab_size: int | None, dtype: torch.dtype) -> HeadMatrix:
    """Drop the surplus rows of a head and bring it to the dtype of the products."""
    bias = head.bias
    return HeadMatrix(
        head.weight.detach()[:vocab_size].to(dtype),
        None if bias is None else bias.detach()[:vocab_size].to(dtype),
        head.logit_scale,
        head.softcap,
    )


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's where it is on, else that of the hidden states.

    Example:
        >>> product_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.bfloat16
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


class LogitBlock:
    """The logits of a few rows in one reused buffer, turned in place into what is needed next.

    The steps have an order: `fill`, `at`, `exponentiate`, then `boundary`, `to_gradient`.

    Args:
        head: cut and of the right dtype.
        rows: the largest number of rows that is expected.
    """

    def __init__(self, head: HeadMatrix, rows: int) -> None:
        self.head = head
        self.dtype = accumulation_dtype(head.weight)
        self._buffer = head.weight.new_empty((rows, head.weight.shape[0]), dtype=self.dtype)
        self.values = self._buffer[:0]
        self.slope: Tensor | None = None
        self.shift = self.normaliser = self._buffer[:0, 0]

    def fill(self, hidden: Float[Tensor, "N D"], *, keep_slope: bool = False) -> None:
        """Compute the logits of these rows.

        Args:
            hidden: in the dtype of the head's matrix.
            keep_slope: also keep the derivative of the soft cap, for `to_gradient`.
        """
        if hidden.shape[0] > self._buffer.shape[0]:
            # A merged chunk longer than a block: it has to be seen whole.
            self._buffer = self._buffer.new_empty((hidden.shape[0], self._buffer.shape[1]))
        self.values = self._buffer[: hidden.shape[0]]
        _logits_into(self.values, hidden, self.head)
        self.slope = None
        if self.head.softcap is not None:
            self.values.div_(self.head.softcap).tanh_()
            if keep_slope:
                self.slope = self.values.square().neg_().add_(1.0)
            self.values.mul_(self.head.softcap)

    def at(self, slot: Int64[Tensor, " I"], target: Int64[Tensor, " I"]) -> Float[Tensor, " I"]:
        """Read the logits of the targets."""
        return self.values[slot, target]

    def exponentiate(self) -> Float[Tensor, " N"]:
        """Replace each logit by exp(logit - row maximum); return each row's log-normaliser."""
        self.shift = self.values.new_empty(self.values.shape[0])
        self.normaliser = torch.empty_like(self.shift)
        for part in self._strips():
            values = self.values[part]
            self.shift[part] = values.amax(1)
            values.sub_(self.shift[part].unsqueeze(1)).exp_()
            self.normaliser[part] = values.sum(1)
        return self.shift + self.normaliser.log()

    def boundary(
        self, hidden: Float[Tensor, "N D"], mask: Bool[Tensor, " V"]
    ) -> tuple[Float[Tensor, " N"], Bool[Tensor, " N"]]:
        """Compute the logsumexp of the boundary tokens' logits.

        Args:
            hidden: the rows the block was filled with.
            mask: which tokens are boundary tokens.

        Returns:
            Nats, unnormalised, and the rows whose sum of exponentials underflowed; those were
            computed again by `exact_boundary`.
        """
        mass = self.values @ mask.to(self.dtype)
        rare = mass < torch.finfo(self.dtype).tiny * 1e8
        log_mass = self.shift + mass.log()
        for part in rare.nonzero().squeeze(1).split(EXACT_ROWS):
            log_mass[part] = exact_boundary(hidden[part], self.head, mask)[0]
        return log_mass, rare

    def to_gradient(
        self,
        on_all: Float[Tensor, " N"],
        on_boundary: Float[Tensor, " N"] | None = None,
        mask: Bool[Tensor, " V"] | None = None,
    ) -> None:
        """Multiply each row by `on_all`, plus `on_boundary` in the columns of `mask`."""
        for part in self._strips():
            factor = on_all[part].unsqueeze(1)
            if on_boundary is not None and mask is not None:
                factor = torch.where(mask, factor + on_boundary[part].unsqueeze(1), factor)
            self.values[part].mul_(factor)

    def _strips(self) -> list[slice]:
        """Cut the rows into strips; on an accelerator, do not cut."""
        count, width = self.values.shape
        step = max(count, 1)
        if self.values.device.type == "cpu":
            step = max(1, STRIP_BYTES // max(1, width * self.values.element_size()))
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def exact_boundary(
    hidden: Float[Tensor, "N D"], head: HeadMatrix, mask: Bool[Tensor, " V"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """Compute the boundary tokens' logsumexp and their softmax among themselves.

    For the rare rows whose boundary mass is below the smallest float.

    Returns:
        Nats, unnormalised, and the softmax; `-inf` and zeros where there is no mass at all.
    """
    block = LogitBlock(head, hidden.shape[0])
    block.fill(hidden)
    inside = block.values.masked_fill_(~mask, -torch.inf)
    mass = torch.logsumexp(inside, 1)
    nothing = (mass == -torch.inf).unsqueeze(1)
    return mass, torch.softmax(inside, 1).masked_fill(nothing, 0.0)


def add_product(total: Float[Tensor, "V D"], left: Tensor, right: Float[Tensor, "N D"]) -> None:
    """Add `left.T @ right` to `total` [V, D], which may be of a wider dtype.

    Args:
        total: float32 or float64.
        left: [N, V], in the dtype of `right`.
        right: hidden states.
    """
    if total.dtype == right.dtype:
        total.addmm_(left.t(), right)
        return
    step = max(1, BLOCK_BYTES // (8 * max(1, right.shape[1])))
    for start in range(0, total.shape[0], step):
        total[start : start + step] += left[:, start : start + step].t() @ right


def _logits_into(out: Float[Tensor, "N V"], hidden: Float[Tensor, "N D"], head: HeadMatrix) -> None:
    if out.dtype == hidden.dtype:
        torch.mm(hidden, head.weight.t(), out=out)
    else:
        out.copy_(hidden @ head.weight.t())
    if head.bias is not None:
        out.add_(head.bias)
    if head.logit_scale != 1.0:
        out.mul_(head.logit_scale)
