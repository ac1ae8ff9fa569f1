"""What objectives that compare rows of logits before each chunk have in common."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.functional.rows import ChunkRows, chunk_rows
from crosstill.objectives.base import PairBatch

TEACHER_ROWS = 256
"""Rows for which the teacher's logits are made at a time."""


def rows_of_chunks(batch: PairBatch) -> ChunkRows:
    """List the chunks that both models predict."""
    return chunk_rows(batch["student_chunk"], batch["teacher_chunk"])


def number_of_chunks(batch: PairBatch) -> Float[Tensor, ""]:
    """Count them, without a look at the device: the shape is known."""
    rows = rows_of_chunks(batch)
    return torch.full((), float(rows.batch.shape[0]), device=rows.batch.device)


def first_tokens(batch: PairBatch) -> Bool[Tensor, "B Ts"]:
    """Tell which of the student's tokens come first in these chunks."""
    rows = rows_of_chunks(batch)
    tokens = torch.zeros_like(batch["student_chunk"], dtype=torch.bool)
    ones = torch.ones_like(rows.batch, dtype=torch.bool)
    return tokens.index_put((rows.batch, rows.student_row + 1), ones)
