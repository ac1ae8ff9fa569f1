"""Which rows of the two models' logits belong together.

Row t of a model's logits predicts its token t + 1. Axes: B sequences, T tokens (Ts student, Tt
teacher), N rows that were chosen. The indices depend on the batch alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from crosstill.functional.chunk import last_positions
from crosstill.functional.losses import IGNORED_LABEL


@dataclass(frozen=True)
class ChunkRows:
    """The chunks that both models can be asked about, in the order of the batch; all int64 [N].

    Attributes:
        batch: which sequence the chunk is in.
        chunk: its index there.
        student_row: the student's position that predicts the chunk's first token.
        teacher_row: the teacher's.
        student_end: position of the chunk's last token on the student's side.
        teacher_end: the same on the teacher's.
        student_length: tokens of the student in the chunk.
        teacher_length: tokens of the teacher.
    """

    batch: Int64[Tensor, " N"]
    chunk: Int64[Tensor, " N"]
    student_row: Int64[Tensor, " N"]
    teacher_row: Int64[Tensor, " N"]
    student_end: Int64[Tensor, " N"]
    teacher_end: Int64[Tensor, " N"]
    student_length: Int64[Tensor, " N"]
    teacher_length: Int64[Tensor, " N"]


def chunk_rows(
    student_chunk: Int64[Tensor, "B Ts"], teacher_chunk: Int64[Tensor, "B Tt"]
) -> ChunkRows:
    """List the chunks with tokens on both sides whose first tokens are predicted by something.

    Args:
        student_chunk: chunk of each student token, ascending from 0 in each row, -1 outside.
        teacher_chunk: chunk of each teacher token.

    Returns:
        The rows. A chunk that begins at position 0 of a side is left out.

    Example:
        >>> rows = chunk_rows(torch.tensor([[-1, 0, 0, 1]]), torch.tensor([[-1, 0, 1, 1]]))
        >>> rows.student_row, rows.teacher_end
        (tensor([0, 2]), tensor([1, 3]))
    """
    count = max(student_chunk.shape[1], teacher_chunk.shape[1])
    sides = [(first_positions(side, count), last_positions(side, count))
             for side in (student_chunk, teacher_chunk)]  # fmt: skip
    (student_first, student_last), (teacher_first, teacher_last) = sides
    batch, chunk = ((student_first > 0) & (teacher_first > 0)).nonzero(as_tuple=True)
    starts = student_first[batch, chunk], teacher_first[batch, chunk]
    ends = student_last[batch, chunk], teacher_last[batch, chunk]
    return ChunkRows(
        batch,
        chunk,
        starts[0] - 1,
        starts[1] - 1,
        *ends,
        ends[0] - starts[0] + 1,
        ends[1] - starts[1] + 1,
    )


def first_positions(chunk: Int64[Tensor, "B T"], num_chunks: int) -> Int64[Tensor, "B C"]:
    """Find the position of each chunk's first token; -1 for a chunk without tokens.

    Example:
        >>> first_positions(torch.tensor([[0, 0, -1, 1]]), 3)
        tensor([[ 0,  3, -1]])
    """
    length = chunk.shape[1]
    position = torch.arange(length, device=chunk.device).expand_as(chunk)
    position = torch.where(chunk >= 0, position, length)
    none = chunk.new_full((chunk.shape[0], num_chunks), length)
    first = none.scatter_reduce(1, chunk.clamp(min=0), position, "amin")
    return torch.where(first < length, first, -1)


def label_rows(
    labels: Int64[Tensor, "B T"],
) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """List the rows that predict a supervised token.

    Args:
        labels: the token's id where it is supervised, -100 elsewhere.

    Returns:
        The sequence, the position of the row (one before the token) and the token. Position 0,
        which nothing predicts, is left out.

    Example:
        >>> label_rows(torch.tensor([[4, -100, 7]]))
        (tensor([0]), tensor([1]), tensor([7]))
    """
    batch, row = (labels[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
    return batch, row, labels[batch, row + 1]
