r"""A sparse matrix from the student's vocabulary to the teacher's.

Axes: Vs and Vt vocabularies, E entries of the matrix. Row s says which teacher tokens the mass of
student token s belongs to; it adds up to 1, or to 0 where nothing spells the token.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError


@dataclass(frozen=True)
class Projection:
    """A row-normalised sparse matrix [Vs, Vt], by its entries.

    Attributes:
        student: the row of each entry, ascending.
        teacher: its column.
        weight: above 0; those of a row add up to 1.
        unmapped: student tokens whose row is empty.
        reached: teacher tokens whose column is not.
        exact: teacher tokens with a student token of the same bytes.
    """

    student: Int64[Tensor, " E"]
    teacher: Int64[Tensor, " E"]
    weight: Float[Tensor, " E"]
    unmapped: Bool[Tensor, " Vs"]
    reached: Bool[Tensor, " Vt"]
    exact: Bool[Tensor, " Vt"]

    def to(self, device: torch.device) -> "Projection":
        """Move every tensor; the same object if it is there already."""
        if self.student.device == device:
            return self
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})

    def audit(self) -> dict[str, int]:
        """Count the tokens that are mapped, for a look before training.

        Returns:
            Of the student's tokens how many are `exact`, `respelled` in several of the teacher's
            or `unmapped`; of the teacher's tokens how many are `reached` and `unreached`.
        """
        exact = int(self.exact.sum())
        unmapped = int(self.unmapped.sum())
        reached = int(self.reached.sum())
        return {
            "exact": exact,
            "respelled": len(self.unmapped) - exact - unmapped,
            "unmapped": unmapped,
            "reached": reached,
            "unreached": len(self.reached) - reached,
        }


def make_projection(
    shared: Int64[Tensor, "S 2"],
    offsets: Int64[Tensor, " rows"],
    ids: Int64[Tensor, " pieces"],
    teacher_size: int,
    *,
    decay: float = 0.1,
    max_pieces: int = 4,
) -> Projection:
    r"""Make the matrix from shared tokens and from the spellings of all others.

    A shared token has the one weight 1. Any other student token that the teacher spells in
    k <= `max_pieces` tokens gives piece j = 0..k-1 the weight
    :math:`\gamma^j / \sum_{i<k} \gamma^i`; longer ones are unmapped.

    Args:
        shared: rows of student id and teacher id, one-to-one.
        offsets: [Vs + 1], where each student token's pieces begin in `ids`.
        ids: teacher tokens.
        teacher_size: Vt.
        decay: gamma in (0, 1].
        max_pieces: at least 1.

    Raises:
        ConfigError: decay or max_pieces out of range.

    Source: arXiv:2605.21699, section 3 (the projection matrix).

    Example:
        >>> shared = torch.tensor([[0, 1]])
        >>> made = make_projection(shared, torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), 3)
        >>> made.student, made.teacher, made.weight
        (tensor([0, 1, 1]), tensor([1, 0, 2]), tensor([1.0000, 0.9091, 0.0909]))
    """
    check_projection(decay, max_pieces)
    student_size = offsets.shape[0] - 1
    length = offsets.diff()
    taken = torch.zeros(student_size, dtype=torch.bool).index_fill(0, shared[:, 0], True)
    owner = torch.arange(student_size).repeat_interleave(length)
    place = torch.arange(ids.shape[0]) - offsets[owner]
    kept = (length[owner] <= max_pieces) & ~taken[owner]
    student = torch.cat([shared[:, 0], owner[kept]])
    teacher = torch.cat([shared[:, 1], ids[kept]])
    raw = torch.cat([torch.ones(shared.shape[0]), decay ** place[kept].float()])
    # One entry for each pair: a piece may come twice in one spelling.
    key, where = torch.unique(student * teacher_size + teacher, return_inverse=True)
    weight = torch.zeros(key.shape[0]).index_add(0, where, raw)
    student, teacher = key // teacher_size, key % teacher_size
    whole = torch.zeros(student_size).index_add(0, student, weight)
    none = torch.zeros(teacher_size, dtype=torch.bool)
    return Projection(
        student,
        teacher,
        weight / whole[student],
        whole == 0,
        none.index_fill(0, teacher, True),
        none.index_fill(0, shared[:, 1], True),
    )


def relaxed_pairs(projection: Projection, threshold: float = 0.6) -> Int64[Tensor, "M 2"]:
    """Match student tokens one to one with the teacher token that has most of their mass.

    A student token stands for the teacher token of its largest weight, if that is at least the
    threshold. Of several student tokens that want one teacher token, the one with the largest
    weight gets it, so an exact match before all others; of equal ones the lowest id.

    Returns:
        Rows of student id and teacher id, by student id.

    Source: arXiv:2605.21699, H-KL.

    Example:
        >>> shared = torch.tensor([[0, 1]])
        >>> made = make_projection(shared, torch.tensor([0, 1, 3]), torch.tensor([1, 0, 2]), 3)
        >>> relaxed_pairs(made)
        tensor([[0, 1],
                [1, 0]])
    """
    check_threshold(threshold)
    kept = projection.weight >= threshold
    student, teacher = projection.student[kept], projection.teacher[kept]
    order = torch.argsort(projection.weight[kept], descending=True, stable=True)
    for side in (student, teacher):
        # Stable: the entries of one token stay in the order of their weights and ids.
        order = order[torch.argsort(side[order], stable=True)]
        order = order[_first(side[order])]
        order = order[torch.argsort(projection.weight[kept][order], descending=True, stable=True)]
    order = order[torch.argsort(student[order])]
    return torch.stack([student[order], teacher[order]], -1)


def check_projection(decay: float, max_pieces: int) -> None:
    """Refuse a decay or a number of pieces that is out of range.

    Raises:
        ConfigError: with what came.
    """
    if not 0.0 < decay <= 1.0:
        raise ConfigError(f"decay must be above 0 and at most 1; got {decay}")
    if max_pieces < 1:
        raise ConfigError(f"max_pieces must be at least 1; got {max_pieces}")


def check_threshold(threshold: float) -> None:
    """Refuse a threshold of a match outside (0, 1].

    Raises:
        ConfigError: with what came.
    """
    if not 0.0 < threshold <= 1.0:
        raise ConfigError(f"match_threshold must be above 0 and at most 1; got {threshold}")


def _first(values: Tensor) -> Tensor:
    """Bool: the first of each run of equal values."""
    return torch.cat([torch.ones_like(values[:1], dtype=torch.bool), values[1:] != values[:-1]])
