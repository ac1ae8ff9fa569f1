"""Output heads that never hold the logits of a whole batch.

`head_logprobs` scores given tokens, for a teacher. `fused_head` computes ALM, next-token training
or both from hidden states: the gradients are made in the forward pass, while each block's logits
are there, so nothing is computed twice.

Axes: B sequences, T tokens, D hidden, V vocabulary.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from crosstill.errors import ConfigError
from crosstill.functional.divergences import check_divergence
from crosstill.functional.head import (
    EXACT_ROWS,
    Head,
    HeadMatrix,
    LogitBlock,
    add_product,
    cut_head,
    default_block,
    exact_boundary,
    product_dtype,
)
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.plan import Block, ChunkTerm, LabelTerm, block_loss, plan_blocks

__all__ = ["ChunkTerm", "FusedLoss", "Head", "HeadMatrix", "LabelTerm", "fused_head",
           "head_logprobs"]  # fmt: skip


@dataclass(frozen=True)
class FusedLoss:
    """What a fused head gives.

    Attributes:
        total: sum of scale * total over the terms, with the graph.
        parts: the unscaled sums by the type of the term, detached.
    """

    total: Float[Tensor, ""]
    parts: dict[type, LossSum]


@torch.no_grad()
def head_logprobs(
    hidden: Float[Tensor, "B T D"],
    weight: Float[Tensor, "V D"],
    input_ids: Int64[Tensor, "B T"],
    boundary_mask: Bool[Tensor, " mask"] | None,
    *,
    bias: Float[Tensor, " V"] | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    vocab_size: int | None = None,
    needed: Bool[Tensor, "B T"] | None = None,
    block: int | None = None,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Score given tokens from hidden states, without a gradient and block by block.

    Equal to `token_logprobs` and `boundary_logmass` of the logits.

    Args:
        hidden: what the output matrix is applied to.
        weight: the output matrix.
        input_ids: the tokens; row t of `hidden` predicts token t + 1.
        boundary_mask: True for boundary tokens; None gives zeros for their mass.
        bias: added to the products.
        logit_scale: multiplies the logits.
        softcap: c in c * tanh(logits / c).
        vocab_size: rows of `weight` beyond it get no probability.
        needed: False where a row of `hidden` need not be looked at (padding); its results are 0.
        block: rows that are looked at together; None chooses from the vocabulary's size.

    Returns:
        Nats: log p(token t | tokens before t), 0.0 at position 0, and the log of the boundary
        tokens' mass after token t. float32 (float64 for float64).

    Example:
        >>> hidden, weight = torch.zeros(1, 2, 3), torch.zeros(4, 3)
        >>> ids, mask = torch.tensor([[0, 1]]), torch.tensor([True, True, False, False])
        >>> head_logprobs(hidden, weight, ids, mask)
        (tensor([[ 0.0000, -1.3863]]), tensor([[-0.6931, -0.6931]]))
    """
    dtype = product_dtype(hidden)
    head = cut_head(HeadMatrix(weight, bias, logit_scale, softcap), vocab_size, dtype)
    block = block or default_block(head.weight.shape[0])
    target = torch.cat([input_ids[:, 1:], torch.zeros_like(input_ids[:, :1])], 1).flatten()
    flat = hidden.flatten(0, 1)
    mask = None if boundary_mask is None else boundary_mask[: head.weight.shape[0]]
    logprob = flat.new_zeros(target.shape[0], dtype=accumulation_dtype(flat))
    boundary = torch.zeros_like(logprob)
    everything = torch.arange(target.shape[0], device=flat.device)
    rows = everything if needed is None else everything[needed.flatten()]
    logits = LogitBlock(head, min(block, rows.shape[0]))
    with torch.autocast(flat.device.type, enabled=False):
        for part in rows.split(block):
            states = flat[part].to(dtype)
            logits.fill(states)
            chosen = logits.at(torch.arange(part.shape[0], device=part.device), target[part])
            normaliser = logits.exponentiate()
            logprob[part] = chosen - normaliser
            if mask is not None:
                boundary[part] = logits.boundary(states, mask)[0] - normaliser
    logprob = logprob.view_as(input_ids)
    first = logprob.new_zeros(input_ids.shape[0], 1)
    shifted = torch.cat([first, logprob[:, :-1]], 1)[:, : input_ids.shape[1]]
    return shifted, boundary.view_as(input_ids)


def fused_head(
    hidden: Float[Tensor, "B T D"],
    head: Head,
    input_ids: Int64[Tensor, "B T"],
    *terms: ChunkTerm | LabelTerm,
    boundary_mask: Bool[Tensor, " mask"] | None = None,
    vocab_size: int | None = None,
    block: int | None = None,
) -> FusedLoss:
    r"""Compute ALM, next-token training or both from hidden states in one pass.

    For the row that predicts token t the gradient of the loss with respect to its logits is
    :math:`g_t (\text{onehot}_t - p) + g_b (p_B - p)`: :math:`g_t` is the derivative with respect
    to the token's log-probability, :math:`g_b` with respect to the boundary log-mass after a
    chunk that ends there, p the softmax and :math:`p_B` the softmax among boundary tokens. Blocks
    end where no chunk is open, so both are known while the block's logits exist.

    Equal in value and gradient to `alm_loss` and `sft_loss` on the logits.

    Args:
        hidden: what the output matrix is applied to.
        head: the output matrix, and what is done to the logits after it.
        input_ids: the student's tokens.
        *terms: one `ChunkTerm`, one `LabelTerm`, or one of each.
        boundary_mask: True for boundary tokens; needed where a chunk term is debiased.
        vocab_size: rows of the matrix beyond it get no probability and no gradient.
        block: rows that are looked at together; None chooses from the vocabulary's size. A chunk
            that is longer makes its block grow.

    Raises:
        ConfigError: no term, two of a kind, or a boundary mask that is missing.

    Numerics: products in the dtype of the hidden states (or autocast's), everything else and the
    sum of the matrix's gradient in float32. Only rows that a term reads are computed and get a
    gradient. The gradients exist when the forward returns and serve one backward pass; they are
    not differentiable again.

    Example:
        >>> hidden = torch.zeros(1, 2, 3, requires_grad=True)
        >>> head, ids = HeadMatrix(torch.zeros(4, 3)), torch.tensor([[0, 1]])
        >>> term = LabelTerm(labels=ids, scale=torch.tensor(1.0))
        >>> fused_head(hidden, head, ids, term).total
        tensor(1.3863, grad_fn=<_FusedHeadBackward>)
    """
    alm, sft = _checked(terms, boundary_mask)
    size = block or default_block(head.weight.shape[0])
    job = _Job(
        head,
        input_ids,
        plan_blocks((input_ids.shape[0], input_ids.shape[1]), alm, sft, size),
        alm,
        sft,
        boundary_mask if alm is not None and alm.debias else None,
        vocab_size,
        product_dtype(hidden),
        torch.is_grad_enabled(),
    )
    total, *sums = _FusedHead.apply(hidden, head.weight, head.bias, job)
    parts: dict[type, LossSum] = {}
    if alm is not None:
        parts[ChunkTerm] = LossSum(sums[0], sums[1], {"gap": sums[2]})
    if sft is not None:
        parts[LabelTerm] = LossSum(sums[3], sums[4])
    return FusedLoss(total, parts)


def _checked(
    terms: tuple[ChunkTerm | LabelTerm, ...], boundary_mask: Tensor | None
) -> tuple[ChunkTerm | None, LabelTerm | None]:
    chunk_terms = [term for term in terms if isinstance(term, ChunkTerm)]
    label_terms = [term for term in terms if isinstance(term, LabelTerm)]
    if not terms or len(chunk_terms) > 1 or len(label_terms) > 1:
        raise ConfigError(
            "expected one ChunkTerm, one LabelTerm or one of each; got "
            f"{len(chunk_terms)} and {len(label_terms)}"
        )
    alm = chunk_terms[0] if chunk_terms else None
    if alm is not None:
        check_divergence(alm.divergence, alm.temperature)
        if alm.debias and boundary_mask is None:
            raise ConfigError(
                "a debiased ChunkTerm needs boundary_mask; got None. Pass the student's mask, or "
                "set debias=False"
            )
    return alm, label_terms[0] if label_terms else None


@dataclass(frozen=True)
class _Job:
    """Everything that the autograd function needs beside the tensors it differentiates."""

    head: Head
    input_ids: Tensor
    blocks: list[Block]
    alm: ChunkTerm | None
    sft: LabelTerm | None
    mask: Tensor | None
    vocab_size: int | None
    dtype: torch.dtype
    wants_gradient: bool


class _FusedHead(torch.autograd.Function):
    """The gradients are made in `forward`; `backward` multiplies them by what comes in."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job
    ) -> tuple[Tensor, ...]:
        wanted = [job.wants_gradient and needed for needed in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            run = _Run(hidden, weight, bias, job, wanted)
            for block in job.blocks:
                run.add(_moved(block, hidden.device))
        ctx.gradients = run.gradients()
        outputs = (run.total, *run.sums.unbind())
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the gradients of a fused head serve one backward pass; compute the loss again, "
                "or use the plain form on logits"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # In place: a copy of the matrix's gradient would be as large as the matrix.
        return (*(None if g is None else g.mul_(incoming.to(g.dtype)) for g in gradients), None)


@dataclass(frozen=True)
class _After:
    """The boundary tokens after each row of a block: see `LogitBlock.boundary`."""

    mask: Tensor
    log_mass: Tensor
    rare: Tensor


class _Run:
    """One pass over the blocks: the sums so far and the gradients so far."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job, wanted: list[bool]
    ) -> None:
        self.job, self.wanted = job, wanted
        self.like = (hidden, weight, bias)
        self.head = cut_head(job.head, job.vocab_size, job.dtype)
        self.flat = hidden.detach().flatten(0, 1)
        vocab = self.head.weight.shape[0]
        self.mask = None if job.mask is None else job.mask[:vocab].to(hidden.device)
        rows = max((len(block.rows) for block in job.blocks), default=0)
        self.logits = LogitBlock(self.head, rows)
        wide = self.logits.dtype
        self.total = torch.zeros((), dtype=wide, device=hidden.device)
        self.sums = torch.zeros(5, dtype=wide, device=hidden.device)
        self.d_hidden = torch.zeros_like(self.flat, dtype=wide) if wanted[0] else None
        self.d_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        self.d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None

    def add(self, block: Block) -> None:
        """Compute a block's loss and add its gradients."""
        states = self.flat[block.rows].to(self.job.dtype)
        logits = self.logits
        logits.fill(states, keep_slope=any(self.wanted))
        target = self.job.input_ids.flatten()[block.token]
        chosen = logits.at(block.token_slot, target)
        normaliser = logits.exponentiate()
        logprob = chosen - normaliser[block.token_slot]
        after, boundary = None, None
        if self.mask is not None:
            after = _After(self.mask, *logits.boundary(states, self.mask))
            boundary = (after.log_mass - normaliser)[block.end_slot]
        on_token, on_end = self._differentiate(logprob, boundary, block)
        if any(self.wanted):
            scale = self.head.logit_scale
            at_end = torch.zeros_like(normaliser)
            if on_end is not None:
                at_end.index_add_(0, block.end_slot, on_end * scale)
            at_token = torch.zeros_like(at_end).index_add_(0, block.token_slot, on_token * scale)
            hits = (block.token_slot, target)
            self._to_gradient(at_token, at_end, hits, after, states)
            self._spread(block.rows, states)

    def _differentiate(
        self, logprob: Tensor, boundary: Tensor | None, block: Block
    ) -> tuple[Tensor, Tensor | None]:
        """Add the block's loss to the sums; return its derivatives by the few scores."""
        with torch.enable_grad():
            leaves = [logprob.requires_grad_()]
            if boundary is not None:
                leaves.append(boundary.requires_grad_())
            total, parts = block_loss(logprob, boundary, block, self.job.alm, self.job.sft)
            on_token, *rest = torch.autograd.grad(total, leaves)
        self.total += total.detach()
        if ChunkTerm in parts:
            part = parts[ChunkTerm]
            self.sums[:3] += torch.stack([part.total.detach(), part.count, part.sums["gap"]])
        if LabelTerm in parts:
            part = parts[LabelTerm]
            self.sums[3:] += torch.stack([part.total.detach(), part.count])
        return on_token, rest[0] if rest else None

    def _to_gradient(
        self,
        at_token: Tensor,
        at_end: Tensor,
        hits: tuple[Tensor, Tensor],
        after: "_After | None",
        states: Tensor,
    ) -> None:
        """Turn the block's exponentials into the gradient of its logits, before the scale.

        Each row predicts one token at most, so `hits` names each place once.
        """
        logits = self.logits
        everywhere = -(at_token + at_end) / logits.normaliser
        if after is None:
            logits.to_gradient(everywhere)
        else:
            # exp(log_mass - shift) is the sum of the exponentials that stand in the buffer.
            inside = at_end * torch.exp(logits.shift - after.log_mass).masked_fill(after.rare, 0.0)
            logits.to_gradient(everywhere, inside, after.mask)
            for part in after.rare.nonzero().squeeze(1).split(EXACT_ROWS):
                softmax = exact_boundary(states[part], self.head, after.mask)[1]
                logits.values[part] += at_end[part].unsqueeze(1) * softmax
        logits.values[hits] += at_token[hits[0]]
        if logits.slope is not None:
            logits.values.mul_(logits.slope)

    def _spread(self, rows: Tensor, states: Tensor) -> None:
        """Add the products of the logits' gradient to the gradients of the inputs."""
        gradient = self.logits.values
        if self.d_bias is not None:
            self.d_bias[: gradient.shape[1]] += gradient.sum(0)
        gradient = gradient.to(self.job.dtype)
        if self.d_hidden is not None:
            back = gradient @ self.head.weight
            self.d_hidden.index_add_(0, rows, back.to(self.d_hidden.dtype))
        if self.d_weight is not None:
            add_product(self.d_weight[: gradient.shape[1]], gradient, states)

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients in the shapes and dtypes of the inputs."""
        made = (self.d_hidden, self.d_weight, self.d_bias)
        return [
            None if gradient is None or like is None else gradient.view_as(like).to(like.dtype)
            for gradient, like in zip(made, self.like, strict=True)
        ]


def _moved(block: Block, device: torch.device) -> Block:
    if device.type == "cpu":
        return block
    return replace(
        block, **{field.name: getattr(block, field.name).to(device) for field in fields(block)}
    )
