"""Batches and teacher signals for tests of objectives, made from the functional layer's cases."""

from dataclasses import dataclass

import torch
from torch import Tensor

from crosstill.objectives import Mix, create
from functional.cases import Case, random_case


@dataclass(frozen=True)
class FakeSignal:
    """What a teacher gave."""

    logprob: Tensor
    boundary: Tensor


def batch_of(case: Case):
    """(batch, signal) as the collator and a teacher would give them."""
    batch = {
        "student_input_ids": case.student_ids,
        "student_attention_mask": torch.ones_like(case.student_ids),
        "student_labels": case.labels,
        "student_chunk": case.student_chunk,
        "teacher_input_ids": torch.zeros_like(case.teacher_chunk),
        "teacher_attention_mask": torch.ones_like(case.teacher_chunk),
        "teacher_chunk": case.teacher_chunk,
    }
    return batch, FakeSignal(case.teacher_logprob, case.teacher_boundary)


def whole(seed=0, dtype=torch.float32, **shape):
    """(case, batch, signal), with logits in reach of the case."""
    case = random_case(seed, dtype=dtype, **shape)
    return case, *batch_of(case)


def rows_of(batch, signal, rows):
    """The batch and the signal of some rows."""
    part = {key: value[rows] for key, value in batch.items()}
    return part, FakeSignal(signal.logprob[rows], signal.boundary[rows])


def padded(batch, signal, logits, extra):
    """The same batch with `extra` more columns of padding on both sides."""
    fill = {"student_labels": -100, "student_chunk": -1, "teacher_chunk": -1}
    part = {
        key: torch.nn.functional.pad(value, (0, extra), value=fill.get(key, 0))
        for key, value in batch.items()
    }
    wider = [
        torch.nn.functional.pad(value, (0, extra), value=float("-inf"))
        for value in (signal.logprob, signal.boundary)
    ]
    logits = torch.nn.functional.pad(logits, (0, 0, 0, extra), value=float("-inf"))
    return part, FakeSignal(*wider), logits


def alone(name, case, **options):
    """A mix of one objective with weight 1."""
    return Mix({name: (create(name, **options), 1.0)}, boundary_mask=case.mask)
