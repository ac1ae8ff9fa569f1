"""What probability logits give to classes of tokens, and to single tokens beside them.

Axes: S rows, V ids, C classes, E single tokens of rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.kernels import class_sums as kernel


@dataclass(frozen=True)
class Classes:
    """A partition of a vocabulary.

    Attributes:
        of: [V], the class of each id.
        members: [V], the ids, sorted by class.
        start: [C + 1], where each class begins in `members`, and V.
    """

    of: Int64[Tensor, " V"]
    members: Int64[Tensor, " V"]
    start: Int64[Tensor, " C1"]

    @classmethod
    def make(cls, of: Int64[Tensor, " V"], count: int) -> "Classes":
        """Sort ids by class.

        Example:
            >>> Classes.make(torch.tensor([1, 0, 1]), 3).start
            tensor([0, 1, 3, 3])
        """
        sizes = torch.bincount(of, minlength=count)
        start = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        return cls(of, torch.argsort(of, stable=True), start)

    def __len__(self) -> int:
        """How many classes there are."""
        return len(self.start) - 1

    def sizes(self) -> Int64[Tensor, " C"]:
        """How many ids each class has."""
        return self.start.diff()

    def to(self, device: torch.device) -> "Classes":
        """Move the partition to a device."""
        return Classes(**{name: value.to(device) for name, value in vars(self).items()})


def class_mass(
    logits: Float[Tensor, "S V"],
    classes: Classes,
    row: Int64[Tensor, " E"],
    id: Int64[Tensor, " E"],
) -> tuple[Float[Tensor, "S C"], Float[Tensor, " E"]]:
    r"""Softmax, summed over classes, and looked up at some tokens.

    One matrix [S, V] is kept for the gradient, and one is made by it, whatever the classes are:

    .. math:: \frac{\partial L}{\partial z_{sv}} = p_{sv} \Big(g_{s c(v)} + \sum_{e: (s, v)} h_e
              - \sum_c g_{sc} m_{sc} - \sum_{e: s} h_e p_e\Big)

    with g and h the gradients by the masses m and by the tokens' probabilities.

    Args:
        logits: float32 or float64.
        classes: of the ids.
        row: the row of each single token.
        id: and which it is.

    Returns:
        The mass of each class, and the probability of each single token.

    Example:
        >>> classes = Classes.make(torch.tensor([0, 1, 1]), 2)
        >>> one = torch.tensor([0])
        >>> class_mass(torch.zeros(1, 3), classes, one, one)
        (tensor([[0.3333, 0.6667]]), tensor([0.3333]))
    """
    return _ClassMass.apply(logits, classes, row, id)


class _ClassMass(torch.autograd.Function):
    """See `class_mass`."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, classes: Classes, row: Tensor, id: Tensor
    ) -> tuple[Tensor, Tensor]:
        probability = torch.softmax(logits, -1)
        mass, single = _sums(probability, classes), probability[row, id]
        ctx.classes = classes
        ctx.save_for_backward(probability, mass, single, row, id)
        return mass, single

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        probability, mass, single, row, id = ctx.saved_tensors
        by_class, by_single = gradients
        mean = (by_class * mass).sum(1).index_add_(0, row, by_single * single)
        found = _gradient(probability, by_class, mean, ctx.classes)
        found.index_put_((row, id), by_single * single, accumulate=True)
        return found, None, None, None


def _sums(probability: Float[Tensor, "S V"], classes: Classes) -> Float[Tensor, "S C"]:
    if _compiled(probability):
        arrays = (part.numpy() for part in (probability, classes.members, classes.start))
        return torch.from_numpy(kernel.class_sums(*arrays, threads=torch.get_num_threads()))
    nothing = probability.new_zeros(len(probability), len(classes))
    return nothing.index_add_(1, classes.of, probability)


def _gradient(
    probability: Float[Tensor, "S V"],
    by_class: Float[Tensor, "S C"],
    mean: Float[Tensor, " S"],
    classes: Classes,
) -> Float[Tensor, "S V"]:
    if _compiled(probability):
        arrays = (part.numpy() for part in (probability, by_class, classes.of, mean))
        return torch.from_numpy(kernel.class_gradient(*arrays, threads=torch.get_num_threads()))
    return by_class.index_select(1, classes.of).sub_(mean[:, None]).mul_(probability)


def _compiled(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and kernel.available()
