"""Which columns of two models' logits stand for the same token, and which stand alone.

Axes: Vs and Vt vocabularies, S shared tokens, Us and Ut tokens of one side alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from crosstill.errors import ConfigError


@dataclass(frozen=True)
class MatchedColumns:
    """The columns of both models, split in those that are shared and the rest; all int64.

    Attributes:
        student: [S], the shared tokens' ids of the student.
        teacher: [S], the same tokens' ids of the teacher.
        student_alone: [Us], the student's other ids, ascending.
        teacher_alone: [Ut], the teacher's.
        student_slot: [Vs], where in `student` an id stands; S for the others.
        teacher_slot: [Vt], the same for the teacher.
    """

    student: Int64[Tensor, " S"]
    teacher: Int64[Tensor, " S"]
    student_alone: Int64[Tensor, " Us"]
    teacher_alone: Int64[Tensor, " Ut"]
    student_slot: Int64[Tensor, " Vs"]
    teacher_slot: Int64[Tensor, " Vt"]

    def to(self, device: torch.device) -> "MatchedColumns":
        """Move everything to a device; itself where it is there already."""
        if self.student.device == device:
            return self
        return MatchedColumns(**{name: ids.to(device) for name, ids in vars(self).items()})


def match_columns(
    shared: Int64[Tensor, "S 2"], student_size: int, teacher_size: int
) -> MatchedColumns:
    """Split the columns of two models by a list of shared tokens.

    Args:
        shared: (student id, teacher id), one-to-one; pairs with an id that a model does not have
            are left out.
        student_size: Vs, columns of the student.
        teacher_size: Vt, columns of the teacher.

    Raises:
        ConfigError: an id of a side is shared twice.

    Example:
        >>> columns = match_columns(torch.tensor([[0, 1], [2, 0]]), 3, 2)
        >>> columns.student_alone, columns.teacher_slot
        (tensor([1]), tensor([1, 0]))
    """
    known = (shared[:, 0] < student_size) & (shared[:, 1] < teacher_size)
    shared = shared[known]
    sides = []
    for ids, size in ((shared[:, 0], student_size), (shared[:, 1], teacher_size)):
        slot = torch.full((size,), len(shared), dtype=torch.long, device=shared.device)
        slot[ids] = torch.arange(len(shared), device=shared.device)
        alone = (slot == len(shared)).nonzero().squeeze(1)
        if len(alone) + len(shared) != size:
            raise ConfigError(
                f"expected each id once in a list of shared tokens; {len(shared)} pairs name "
                f"{size - len(alone)} ids of one side. Leave all but one pair of an id out"
            )
        sides.append((ids.contiguous(), alone, slot))
    (student, student_alone, student_slot), (teacher, teacher_alone, teacher_slot) = sides
    return MatchedColumns(
        student, teacher, student_alone, teacher_alone, student_slot, teacher_slot
    )
