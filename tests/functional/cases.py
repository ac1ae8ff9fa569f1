"""Random batches for the tests of the functional layer and of the objectives."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Case:
    """Everything that a loss may read, for one small batch."""

    hidden: Tensor
    weight: Tensor
    student_ids: Tensor
    labels: Tensor
    student_chunk: Tensor
    teacher_chunk: Tensor
    teacher_logprob: Tensor
    teacher_boundary: Tensor
    mask: Tensor

    @property
    def logits(self) -> Tensor:
        return self.hidden @ self.weight.t()


def random_chunks(generator, rows, length, chunks, outside):
    """Ascending chunk indices with gaps of -1, a row without any, and position 0 outside."""
    out = torch.randint(0, chunks, (rows, length), generator=generator).sort(1).values
    out = (out.diff(dim=1, prepend=out[:, :1]) > 0).cumsum(1)
    out[torch.rand(rows, length, generator=generator) < outside] = -1
    out[:, 0] = -1
    if rows > 1:
        out[1] = -1
    return out


def random_case(seed=0, rows=3, student=13, teacher=11, hidden=6, vocab=19, dtype=torch.float64):
    """A batch whose second row has no chunk and no label."""
    g = torch.Generator().manual_seed(seed)
    student_ids = torch.randint(0, vocab, (rows, student), generator=g)
    labels = student_ids.clone()
    labels[torch.rand(rows, student, generator=g) < 0.4] = -100
    labels[:, 0] = -100
    if rows > 1:
        labels[1] = -100
    mask = torch.rand(vocab, generator=g) < 0.3
    mask[0] = True
    uniform = torch.rand(2, rows, teacher, generator=g, dtype=torch.float64)
    return Case(
        hidden=torch.randn(rows, student, hidden, generator=g, dtype=torch.float64).to(dtype),
        weight=torch.randn(vocab, hidden, generator=g, dtype=torch.float64).to(dtype),
        student_ids=student_ids,
        labels=labels,
        student_chunk=random_chunks(g, rows, student, 6, 0.15),
        teacher_chunk=random_chunks(g, rows, teacher, 6, 0.15),
        teacher_logprob=(3 * uniform[0]).log().clamp(max=0).to(dtype),
        teacher_boundary=uniform[1].log().to(dtype),
        mask=mask,
    )
