"""Several teachers of one student: their names, and how each of them reads a batch."""

from collections.abc import Mapping

import torch

from crosstill.functional.losses import supervised_tokens
from crosstill.objectives.base import PairBatch, Signal

MAIN, SAME = "main", "same"
TEACHERS = (MAIN, SAME)
"""The names an objective may give under `teacher`."""

Signals = Mapping[str, Signal]
"""What each teacher gave for a batch, by its name."""


def seen(teacher: str, batch: PairBatch) -> PairBatch:
    """Return the batch as a teacher reads it."""
    return own_rendering(batch) if teacher == SAME else batch


def own_rendering(batch: PairBatch) -> dict[str, torch.Tensor]:
    """Make the batch that a teacher with the student's tokenizer reads.

    It reads the student's own ids. Every supervised token is a chunk of its own, on both sides.
    Nothing is copied but the chunks' numbers.

    Example:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> labels = torch.tensor([[-100, 6, 7]])
        >>> mask = torch.ones_like(ids)
        >>> view = own_rendering(
        ...     {"student_input_ids": ids, "student_attention_mask": mask, "student_labels": labels}
        ... )
        >>> view["teacher_chunk"]
        tensor([[-1,  0,  1]])
    """
    labels = batch["student_labels"]
    supervised = supervised_tokens(labels)
    chunk = (supervised.long().cumsum(-1) - 1).masked_fill(~supervised, -1)
    return {
        **batch,
        "student_chunk": chunk,
        "teacher_input_ids": batch["student_input_ids"],
        "teacher_attention_mask": batch["student_attention_mask"],
        "teacher_labels": labels,
        "teacher_chunk": chunk,
    }
