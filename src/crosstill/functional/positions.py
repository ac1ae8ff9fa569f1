"""Pairing by position: the k-th supervised token of a student with the k-th of a teacher.

Axes: B sequences, Ts and Tt tokens, N pairs of rows. Row t of a model's logits predicts its
token t + 1. The indices depend on the batch alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crosstill.functional.losses import IGNORED_LABEL


@dataclass(frozen=True)
class RowPairs:
    """Rows of the two models that are compared, in the order of the batch; all int64 [N].

    Attributes:
        batch: which sequence the pair is in.
        student_row: position in the student's logits.
        teacher_row: position in the teacher's.
    """

    batch: Int64[Tensor, " N"]
    student_row: Int64[Tensor, " N"]
    teacher_row: Int64[Tensor, " N"]


def position_rows(
    student_labels: Int64[Tensor, "B Ts"], teacher_labels: Int64[Tensor, "B Tt"]
) -> RowPairs:
    """Pair the rows that predict the supervised tokens, counted from each side's first.

    Args:
        student_labels: -100 where a token is not supervised. Position 0, which nothing predicts,
            is left out.
        teacher_labels: the same of the teacher.

    Returns:
        As many pairs a sequence as its shorter side has supervised tokens; what the longer side
        has beyond that is left out.

    Example:
        >>> student, teacher = torch.tensor([[-100, 5, 6, 7]]), torch.tensor([[-100, -100, 8, 9]])
        >>> pairs = position_rows(student, teacher)
        >>> pairs.student_row, pairs.teacher_row
        (tensor([0, 1]), tensor([1, 2]))
    """
    student, teacher = predicting(student_labels), predicting(teacher_labels)
    batch, student_row = _first(student, teacher.sum(1)).nonzero(as_tuple=True)
    teacher_row = _first(teacher, student.sum(1)).nonzero(as_tuple=True)[1]
    return RowPairs(batch, student_row, teacher_row)


def predicting(labels: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Tell which rows predict a supervised token.

    Example:
        >>> predicting(torch.tensor([[-100, 5, -100, 6]]))
        tensor([[ True, False,  True, False]])
    """
    supervised = labels[:, 1:] != IGNORED_LABEL
    return torch.cat([supervised, torch.zeros_like(labels[:, :1], dtype=torch.bool)], 1)


def predicted(
    like: Int64[Tensor, "B T"], batch: Int64[Tensor, " N"], row: Int64[Tensor, " N"]
) -> Bool[Tensor, "B T"]:
    """Mark the tokens that these rows predict.

    Example:
        >>> predicted(torch.zeros(1, 3).long(), torch.tensor([0]), torch.tensor([1]))
        tensor([[False, False,  True]])
    """
    marked = torch.zeros_like(like, dtype=torch.bool)
    marked[batch, row + 1] = True
    return marked


def _first(rows: Tensor, most: Tensor) -> Tensor:
    """The first so many marked rows of each sequence."""
    return rows & (rows.cumsum(1) <= most.unsqueeze(1))
