"""Which rows of logits a merge reads for each chunk, and which score the chunk's other tokens.

Axes: B sequences, T tokens of one side, N chunks, M tokens of those chunks beside the kept ones.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.functional.gold import TRL_FLOOR
from crosstill.functional.numerics import FLOOR, accumulation_dtype
from crosstill.functional.rows import ChunkRows
from crosstill.functional.scores import row_logprobs


@dataclass(frozen=True)
class SideRows:
    """Where one side's logits are read; int64 but for `alone`.

    Attributes:
        batch: [N], which sequence a chunk is in.
        first: [N], position of the chunk's first token.
        row: [N], the row of logits that becomes the chunk's distribution.
        alone: bool [N], the first token is the chunk's only one.
        other_batch: [M], which sequence another token of a chunk is in.
        other: [M], its position.
        other_row: [M], the row that scores it.
        group: [M], which of the N chunks it belongs to.
    """

    batch: Int64[Tensor, " N"]
    first: Int64[Tensor, " N"]
    row: Int64[Tensor, " N"]
    alone: Bool[Tensor, " N"]
    other_batch: Int64[Tensor, " M"]
    other: Int64[Tensor, " M"]
    other_row: Int64[Tensor, " M"]
    group: Int64[Tensor, " M"]


def side_rows(
    chunk: Int64[Tensor, "B T"], rows: ChunkRows, num_chunks: int, merge: str, *, student: bool
) -> SideRows:
    """List what `gold_loss` reads of one side.

    Args:
        chunk: chunk of each token of the side, -1 outside.
        rows: the chunks that both sides have.
        num_chunks: larger than every index in `chunk`.
        merge: "causal" reads the row before a chunk's first token, "bayesian" that before its
            last, "observed" that of the first token itself.
        student: which side of `rows` this is.

    Example:
        >>> from crosstill.functional.rows import chunk_rows
        >>> chunk = torch.tensor([[-1, 0, 0, 1]])
        >>> side = side_rows(chunk, chunk_rows(chunk, chunk), 4, "causal", student=True)
        >>> side.row, side.other, side.group
        (tensor([0, 2]), tensor([2]), tensor([0]))
    """
    first = (rows.student_row if student else rows.teacher_row) + 1
    end = rows.student_end if student else rows.teacher_end
    kept = end if merge == "bayesian" else first
    late = int(merge == "observed")
    number = chunk.new_full((chunk.shape[0], num_chunks), -1)
    number[rows.batch, rows.chunk] = torch.arange(len(first), device=chunk.device)
    group = torch.where(chunk >= 0, number.gather(1, chunk.clamp(min=0)), -1)
    others = group >= 0
    others[rows.batch, kept] = False
    batch, other = others.nonzero(as_tuple=True)
    alone = (rows.student_length if student else rows.teacher_length) == 1
    return SideRows(
        batch=rows.batch,
        first=first,
        row=kept - 1 + late,
        alone=alone,
        other_batch=batch,
        other=other,
        other_row=other - 1 + late,
        group=group[batch, other],
    )


def rest_logprob(
    other_logits: Float[Tensor, "M V"],
    target: Int64[Tensor, " M"],
    group: Int64[Tensor, " M"],
    count: int,
    *,
    temperature: float,
    merge: str,
) -> Float[Tensor, " {count}"]:
    """Sum the log-probabilities of each chunk's other tokens.

    Args:
        other_logits: raw, the rows that score them.
        target: their ids.
        group: which chunk each belongs to.
        count: N.
        temperature: divides the logits.
        merge: TRL's merges raise each probability to 1e-8, "causal" to e^-10000.

    Returns:
        Nats; 0.0 for a chunk without other tokens.

    Example:
        >>> logits, zeros = torch.zeros(2, 4), torch.zeros(2).long()
        >>> rest_logprob(logits, zeros, zeros + 1, 2, temperature=1.0, merge="causal")
        tensor([ 0.0000, -2.7726])
    """
    floor = FLOOR if merge == "causal" else TRL_FLOOR
    scores = row_logprobs(other_logits.to(accumulation_dtype(other_logits)) / temperature, target)
    return scores.new_zeros(count).index_add(0, group, scores.clamp(min=floor))
