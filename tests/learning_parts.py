"""An objective that learns something itself: next-token training with a learned temperature."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from crosstill.functional.losses import LossSum
from crosstill.objectives import _REGISTRY, register
from crosstill.objectives.sft import Sft


class Temperature(nn.Module):
    """One number, and a matrix, so that a state has more than one thing in it."""

    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.zeros(()))
        self.matrix = nn.Parameter(torch.eye(2))


class Tempered(Sft):
    """Cross-entropy times e^t plus t^2 for each token, and a little of a matrix."""

    name = "tempered"
    fusable = False

    def prepare(self, pair):
        self.parts = Temperature()

    def loss(self, student, batch, signal):
        part = super().loss(student, batch, signal)
        log = self.parts.log
        spread = (self.parts.matrix**2).sum() * part.count
        return LossSum(
            part.total * torch.exp(log) + log**2 * part.count + 0.01 * spread, part.count
        )


@contextmanager
def registered() -> Iterator[None]:
    """The objective is known by name inside."""
    register(Tempered)
    try:
        yield
    finally:
        del _REGISTRY["tempered"]
