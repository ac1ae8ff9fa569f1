"""One step from its first micro-batch to its last: its weights, and what learns beside the student.

The trainer takes the micro-batches as they come; what has to be known of all of them before the
first, or done after the last, is here.
"""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from crosstill.objectives import MixLoss
from crosstill.training import meters
from crosstill.training.balance import Projection, Sample, create_balance, last_block, measure
from crosstill.training.config import DistillConfig
from crosstill.training.learnable import Learnable
from crosstill.training.student import Forward, StudentStep


class Stepper:
    """Weighs the objectives of each step.

    Args:
        step: The student's side.
        model: The student, without wrappers of data parallelism.
        args: The settings.
        accelerator: Whose ranks share the step.

    Attributes:
        learnable: What is trained beside the student.
        weights: Of the step under way, or of the last one, by objective.

    Raises:
        ConfigError: The weighting cannot work with this model.
    """

    def __init__(
        self, step: StudentStep, model: nn.Module, args: DistillConfig, accelerator: Accelerator
    ) -> None:
        self._step, self._model, self._accelerator = step, model, accelerator
        self._seed = args.seed
        mix = step.mix
        self._names = list(mix.objectives)
        self._balance = create_balance(args.weighting, len(self._names), alpha=args.gradnorm_alpha)
        self._measured_weights = last_block(model) if self._balance.measures else []
        self._projection = Projection(step, model, accelerator) if self._balance.projects else None
        self.learnable = Learnable(mix.parts, self._balance)
        self.weights: Mapping[str, Tensor | float] = mix.weights(0, 1)
        self._samples: Sequence[Sample] = ()
        self._left = self._number = 0
        self._base = self._losses = torch.zeros(len(self._names))

    def take(self, samples: Sequence[Sample]) -> None:
        """Takes the micro-batches of the next step, on this rank."""
        self._samples, self._left = samples, len(samples)

    @property
    def at_start(self) -> bool:
        """Whether the next micro-batch is the first of its step."""
        return self._left == len(self._samples)

    @property
    def projects(self) -> bool:
        """Whether steps are taken by `project`."""
        return self._projection is not None

    def begin(self, number: int, steps: int) -> None:
        """Weighs a step.

        Args:
            number: Of the step, from 0 on.
            steps: Of the run.
        """
        device = self._accelerator.device
        weights = self._step.mix.weights(number, steps)
        self._number = number
        self._base = torch.tensor([weights[name] for name in self._names], device=device)
        self._losses = torch.zeros_like(self._base)
        self.learnable.zero_grad()
        measured = None
        if self._balance.measures:
            found = self._samples, self._measured_weights
            measured = measure(self._step, self._model, *found, self._accelerator)
        self.weights = self._named(self._balance.begin(self._base, measured))
        if self._projection is not None:
            self._projection.begin()

    def note(self, loss: MixLoss, counts: Mapping[str, Tensor]) -> None:
        """Notes a micro-batch's share of each objective's mean."""
        means = [loss.parts[name].total / counts[name].clamp(min=1.0) for name in self._names]
        self._losses = self._losses + torch.stack(means).detach()

    def project(self, sample: Sample) -> tuple[MixLoss, Forward]:
        """Makes a micro-batch's gradients one objective at a time."""
        assert self._projection is not None  # noqa: S101 - `projects` was asked
        return self._projection.add(sample, self._named(self._base))

    def end_of_micro_batch(self) -> None:
        """After the last one, does what comes before the optimizer."""
        self._left -= 1
        if self._left:
            return
        self._samples = ()
        if self._projection is not None:
            mixed = self._projection.finish(f"{self._seed}/{self._number}")
            self.weights = self._named(self._base * mixed.to(self._base))
        if self._balance.learns_from_losses:
            self._balance.end(self._base, meters.reduced(self._losses, self._accelerator))
        self.learnable.average(self._accelerator)

    def _named(self, weights: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._names, weights.unbind(), strict=True))
