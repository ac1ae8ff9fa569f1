"""What a fused head has to compute, and in which blocks.

A block is a run of scored tokens that holds every chunk whole: then each chunk's likelihood, and
with it the loss's derivative, is known while the block's logits are still there.

Axes: B sequences, Ts tokens, N rows of a block, I scored tokens of a block, C chunks of a block.
Token t is predicted by row t - 1; the boundary after a chunk by the row of its last token. So the
last row of a block may also be the first of the next, and is then computed twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.functional.losses import (
    LossSum,
    TeacherChunks,
    compare_chunks,
    supervised_tokens,
)
from crosstill.functional.numerics import FLOOR


@dataclass(frozen=True)
class ChunkTerm:
    """ALM in a fused head.

    Attributes:
        teacher: the merged chunks and the teacher's likelihoods, from `teacher_chunks`.
        scale: weight / global count: what the sum is multiplied by.
        temperature: as in `alm_loss`.
        divergence: as in `alm_loss`.
        debias: add the student's boundary log-mass to each chunk.
    """

    teacher: TeacherChunks
    scale: Float[Tensor, ""]
    temperature: float = 100.0
    divergence: str = "kl"
    debias: bool = True


@dataclass(frozen=True)
class LabelTerm:
    """Next-token training in a fused head.

    Attributes:
        labels: -100 where a token is not supervised.
        scale: weight / global count: what the sum is multiplied by.
    """

    labels: Int64[Tensor, "B Ts"]
    scale: Float[Tensor, ""]


@dataclass(frozen=True)
class Block:
    """A run of scored tokens that no chunk crosses.

    Attributes:
        rows: the flat rows of hidden states, ascending.
        token_slot: for each scored token, which of `rows` predicts it.
        token: the flat position of each scored token.
        labelled: which scored tokens have a label.
        member: which scored tokens are in a chunk.
        chunk: for each member, which of the block's chunks it is in.
        key: for each chunk, its place in the flattened [B, C] of `TeacherChunks`.
        end_slot: for each chunk, which of `rows` stands at its last token.
    """

    rows: Int64[Tensor, " N"]
    token_slot: Int64[Tensor, " I"]
    token: Int64[Tensor, " I"]
    labelled: Bool[Tensor, " I"]
    member: Int64[Tensor, " M"]
    chunk: Int64[Tensor, " M"]
    key: Int64[Tensor, " C"]
    end_slot: Int64[Tensor, " C"]


def plan_blocks(
    shape: tuple[int, int], alm: ChunkTerm | None, sft: LabelTerm | None, size: int
) -> list[Block]:
    """Cut the scored tokens of a batch into blocks of about `size` rows.

    Tokens that nothing supervises are in no block. A chunk longer than `size` makes its block
    grow. The indices are read back from the device once, here.

    Args:
        shape: (B, Ts).
        alm: the chunks; None without ALM.
        sft: the labels; None without labels.
        size: rows of a block, at least 1.
    """
    nowhere = torch.full(shape, -1)
    key = nowhere if alm is None else _chunk_keys(alm.teacher)
    labelled = nowhere >= 0 if sft is None else supervised_tokens(sft.labels).cpu()
    key, labelled = key.flatten(), labelled.flatten()
    token = ((key >= 0) | labelled).nonzero().squeeze(1)
    key, labelled = key[token], labelled[token]
    return [
        _block(token[start:stop], key[start:stop], labelled[start:stop])
        for start, stop in _runs(key, size)
    ]


def block_loss(
    logprob: Float[Tensor, " I"],
    boundary: Float[Tensor, " C"] | None,
    block: Block,
    alm: ChunkTerm | None,
    sft: LabelTerm | None,
) -> tuple[Float[Tensor, ""], dict[type, LossSum]]:
    """Compute a block's loss from the few numbers it depends on.

    Args:
        logprob: nats, of each scored token.
        boundary: nats, after each chunk; None without debiasing.
        block: the block.
        alm: the chunk term.
        sft: the label term.

    Returns:
        The scaled loss, and the unscaled sums by the type of the term.
    """
    kept = logprob.clamp(min=FLOOR)
    total, parts = logprob.new_zeros(()), {}
    if alm is not None:
        student = kept.new_zeros(block.key.shape[0])
        student = student.scatter_add(0, block.chunk, kept[block.member])
        if boundary is not None:
            student = student + boundary.clamp(min=FLOOR)
        teacher = alm.teacher.loglikelihood.flatten()[block.key]
        parts[ChunkTerm] = compare_chunks(
            student.clamp(max=0.0),
            teacher,
            torch.ones_like(student, dtype=torch.bool),
            temperature=alm.temperature,
            divergence=alm.divergence,
        )
        total = total + parts[ChunkTerm].total * alm.scale
    if sft is not None:
        loss = -kept.masked_fill(~block.labelled, 0.0).sum()
        parts[LabelTerm] = LossSum(loss, block.labelled.sum().to(loss.dtype))
        total = total + loss * sft.scale
    return total, parts


def _chunk_keys(teacher: TeacherChunks) -> Int64[Tensor, "B Ts"]:
    """Number the counted chunks over the whole batch; -1 for tokens of no counted chunk."""
    chunk, counted = teacher.student_chunk.cpu(), teacher.counted.cpu()
    inside = (chunk >= 0) & counted.gather(1, chunk.clamp(min=0))
    inside[:, :1] = False
    first = torch.arange(chunk.shape[0]).unsqueeze(1) * counted.shape[1]
    return torch.where(inside, chunk + first, -1)


def _runs(key: Int64[Tensor, " I"], size: int) -> list[tuple[int, int]]:
    """Cut the tokens into runs of at most `size`, unless a chunk is longer, cutting no chunk."""
    count = key.shape[0]
    if count == 0:
        return []
    # A cut before token i is allowed if every chunk seen before it is below every one from it on.
    before = key.cummax(0).values[:-1]
    later = torch.where(key < 0, torch.iinfo(key.dtype).max, key).flip(0).cummin(0).values.flip(0)
    cuts = (before < later[1:]).nonzero().squeeze(1) + 1
    cuts = torch.cat([cuts, cuts.new_tensor([count])])
    runs, start = [], 0
    while start < count:
        fits = int(torch.searchsorted(cuts, start + size, right=True)) - 1
        first = int(torch.searchsorted(cuts, start, right=True))
        stop = int(cuts[max(fits, first)])
        runs.append((start, stop))
        start = stop
    return runs


def _block(
    token: Int64[Tensor, " I"], key: Int64[Tensor, " I"], labelled: Bool[Tensor, " I"]
) -> Block:
    member = (key >= 0).nonzero().squeeze(1)
    keys, chunk = torch.unique(key[member], return_inverse=True)
    end = keys.new_zeros(keys.shape).scatter_reduce(0, chunk, token[member], "amax")
    rows, slot = torch.unique(torch.cat([token - 1, end]), return_inverse=True)
    token_slot, end_slot = slot.split([token.shape[0], end.shape[0]])
    return Block(rows, token_slot, token, labelled, member, chunk, keys, end_slot)
