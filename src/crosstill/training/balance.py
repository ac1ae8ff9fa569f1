"""The balance of objectives in a step: what is measured for it, learned for it and done with it.

Every statistic is that of the whole step, over all micro-batches and ranks: how a step is cut
changes no weight. `training.weighting` has the formulas.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from crosstill.blocks import block_count, transformer_blocks
from crosstill.errors import ConfigError
from crosstill.heads import under_adapters
from crosstill.objectives import MixLoss
from crosstill.training import meters
from crosstill.training.randomness import kept_randomness
from crosstill.training.student import Forward, StudentStep
from crosstill.training.weighting import (
    gradmag_weights,
    gradnorm_gradient,
    pcgrad_weights,
    uncertainty_gradient,
)

LEAST_WEIGHT = 1e-3
"""GradNorm's weights stay above it before they are scaled: none changes its sign."""

Sample = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a step's objectives are, measured before it.

    Attributes:
        norms: [n], length of each objective's gradient in the last block, with weight 1.
        losses: [n], each objective's mean over the step.
    """

    norms: Float[Tensor, " n"]
    losses: Float[Tensor, " n"]


class Balance(nn.Module):
    """Fixed weights: those of the recipe.

    Args:
        size: How many objectives there are.
    """

    measures = False
    """Whether `begin` needs a measurement."""
    projects = False
    """Whether each objective's whole gradient is made by itself, by `Projection`."""
    learns_from_losses = False
    """Whether `end` is told the step's losses."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def begin(self, base: Float[Tensor, " n"], measured: Measured | None) -> Float[Tensor, " n"]:
        """Computes the weights of a step.

        Args:
            base: The recipe's weights at this step.
            measured: Of this step, where `measures` asks for it.
        """
        return base

    def end(self, base: Float[Tensor, " n"], losses: Float[Tensor, " n"]) -> None:
        """Learns from a step, after its backward passes and before the optimizer.

        Args:
            base: The recipe's weights at this step.
            losses: Each objective's mean over the step, where `learns_from_losses` asks for them.
        """


class GradMagBalance(Balance):
    """Equal lengths of all gradients in the last block: see `gradmag_weights`."""

    measures = True

    def begin(self, base: Float[Tensor, " n"], measured: Measured | None) -> Float[Tensor, " n"]:
        """The recipe's weights times GradMag's."""
        assert measured is not None  # noqa: S101 - `measures` asks for it
        return base * gradmag_weights(measured.norms).to(base.dtype)


class GradNormBalance(Balance):
    """Weights that learn until slower objectives have longer gradients: see `gradnorm_gradient`.

    Args:
        size: How many objectives there are.
        alpha: How strongly slower ones are favoured.
    """

    measures = True

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__(size)
        self.alpha = alpha
        self.weights = nn.Parameter(torch.ones(size))
        self.first_losses: Tensor
        self.register_buffer("first_losses", torch.zeros(size))

    def begin(self, base: Float[Tensor, " n"], measured: Measured | None) -> Float[Tensor, " n"]:
        """The recipe's weights times the learned ones; the learned ones get their gradient."""
        assert measured is not None  # noqa: S101 - `measures` asks for it
        with torch.no_grad():
            self.weights.clamp_(min=LEAST_WEIGHT)
            self.weights.mul_(self.size / self.weights.sum())
            unseen = self.first_losses == 0.0  # also where the first steps had nothing to count
            self.first_losses.copy_(torch.where(unseen, measured.losses, self.first_losses))
            norms = measured.norms * base
            known = (self.weights, norms, measured.losses, self.first_losses)
            gradient = gradnorm_gradient(*known, alpha=self.alpha)
            self.weights.grad = gradient.to(self.weights)
            return base * self.weights.detach().clone()


class UncertaintyBalance(Balance):
    """Learned log-variances: see `uncertainty_gradient`."""

    learns_from_losses = True

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.log_variances = nn.Parameter(torch.zeros(size))

    def begin(self, base: Float[Tensor, " n"], measured: Measured | None) -> Float[Tensor, " n"]:
        """The recipe's weights divided by the variances."""
        return base * torch.exp(-self.log_variances.detach())

    def end(self, base: Float[Tensor, " n"], losses: Float[Tensor, " n"]) -> None:
        """Gives the log-variances their gradient."""
        gradient = base * uncertainty_gradient(self.log_variances, losses)
        self.log_variances.grad = gradient.to(self.log_variances)


class PCGradBalance(Balance):
    """Gradients without their parts that point against each other: see `pcgrad_weights`."""

    projects = True


def create_balance(weighting: str, size: int, *, alpha: float) -> Balance:
    """Makes what balances the objectives.

    Args:
        weighting: As in `DistillConfig.weighting`.
        size: How many objectives there are.
        alpha: GradNorm's.
    """
    if weighting == "gradnorm":
        return GradNormBalance(size, alpha)
    kinds = {
        "fixed": Balance,
        "gradmag": GradMagBalance,
        "pcgrad": PCGradBalance,
        "uncertainty": UncertaintyBalance,
    }
    return kinds[weighting](size)


def last_block(model: nn.Module) -> list[nn.Parameter]:
    """Finds the trained weights of the last transformer block; an adapter's, where it is adapted.

    Where the last block is frozen it is the last one that is not.

    Raises:
        ConfigError: No list of blocks can be found, or none of them is trained.
    """
    for block in reversed(transformer_blocks(model) or []):
        trained = [weight for weight in block.parameters() if weight.requires_grad]
        if trained:
            return trained
    raise ConfigError(
        f"weighting gradmag and gradnorm measure gradients in the last transformer block, but no "
        f"list of {block_count(model)} blocks with a weight that is trained was found in "
        f"{type(under_adapters(model)).__name__}. Use weighting: uncertainty or fixed"
    )


def measure(
    step: StudentStep,
    model: nn.Module,
    samples: Sequence[Sample],
    weights: Sequence[nn.Parameter],
    accelerator: Accelerator,
) -> Measured:
    """Measures each objective's gradient over a whole step, before the step is taken.

    It costs one more forward pass of the student and, for each objective, a backward pass through
    the head and the last block. The random numbers it draws are those that the step draws again.
    """
    names = list(step.mix.objectives)
    gradients = [[torch.zeros_like(w, dtype=torch.float32) for w in weights] for _ in names]
    losses = torch.zeros(len(names), device=weights[0].device)
    with kept_randomness():
        for sample in samples:
            done = step.forward(model, sample["batch"])
            for i, name in enumerate(names):
                loss = step.loss_of(name, done, sample, frozen_head=True)
                losses[i] += loss.total.detach()
                _accumulate(gradients[i], loss.total, weights, keep=name != names[-1])
    rows = torch.stack([torch.cat([g.flatten() for g in made]) for made in gradients])
    return Measured(
        norms=meters.reduced(rows, accelerator).norm(dim=1),
        losses=meters.reduced(losses, accelerator),
    )


def _accumulate(
    into: Sequence[Tensor], total: Tensor, weights: Sequence[Tensor], *, keep: bool
) -> None:
    """Adds the gradient of a total; `keep` the graph where another one follows."""
    made = torch.autograd.grad(total, weights, retain_graph=keep, allow_unused=True)
    for place, gradient in zip(into, made, strict=True):
        if gradient is not None:
            place.add_(gradient)


class Projection:
    """PCGrad's step: every objective's whole gradient, then what is left of their sum.

    It costs a backward pass, and memory for a gradient, for each objective. What an objective
    learns itself has one gradient, and nothing to conflict with.

    Args:
        step: The student's side.
        model: The student, without wrappers: they would reduce gradients that are not there yet.
        accelerator: Whose ranks share the step.
    """

    def __init__(self, step: StudentStep, model: nn.Module, accelerator: Accelerator) -> None:
        self._step, self._model, self._accelerator = step, model, accelerator
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._gradients: dict[str, list[Tensor]] = {}

    def begin(self) -> None:
        """Makes room for the gradients of a step."""
        self._gradients = {
            name: [torch.zeros_like(weight) for weight in self._weights]
            for name in self._step.mix.objectives
        }

    def add(self, sample: Sample, base: Mapping[str, Tensor]) -> tuple[MixLoss, Forward]:
        """Adds a micro-batch's gradients; returns its share of the loss and the forward pass.

        Args:
            sample: The micro-batch.
            base: The recipe's weights of this step.
        """
        done = self._step.forward(self._model, sample["batch"])
        parts, total = {}, torch.zeros((), device=self._weights[0].device)
        for number, (name, gradients) in enumerate(self._gradients.items()):
            loss = self._step.loss_of(name, done, sample)
            weighted = loss.total * base[name]
            own = self._own(name)
            places = [*gradients, *(cast(Tensor, part.grad) for part in own)]
            keep = number + 1 < len(self._gradients)
            _accumulate(places, weighted, [*self._weights, *own], keep=keep)
            parts |= loss.parts
            total = total + weighted.detach()
        return MixLoss(total, parts), done

    def _own(self, name: str) -> list[nn.Parameter]:
        parts = self._step.mix.objectives[name][0].parts
        return [] if parts is None else list(parts.parameters())

    def finish(self, seed: str) -> Float[Tensor, " n"]:
        """Puts what is left of the gradients' sum where the optimizer finds it.

        Args:
            seed: Decides in which order gradients meet; every rank's is the same.

        Returns:
            How often each objective's gradient is in the sum.
        """
        size = len(self._gradients)
        stacks = [torch.stack(column) for column in zip(*self._gradients.values(), strict=True)]
        self._gradients = {}
        products = []
        for i, stack in enumerate(stacks):
            stacks[i] = meters.reduced(stack, self._accelerator)
            rows = stacks[i].flatten(1).float()
            products.append(rows @ rows.t())
        dealt = random.Random(seed)  # noqa: S311 - an order, not a secret
        others = [[j for j in range(size) if j != i] for i in range(size)]
        orders = [dealt.sample(found, len(found)) for found in others]
        weights = pcgrad_weights(torch.stack(products).double().sum(0), orders)
        for weight, stack in zip(self._weights, stacks, strict=True):
            weight.grad = torch.tensordot(weights.to(stack), stack, dims=1)
        return weights
