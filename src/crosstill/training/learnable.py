"""What a run trains beside the student: the parts of objectives, and the weights of a balance.

They stand outside the student, so no wrapper of data parallelism knows them and nothing of them
is exported. Their gradients are averaged over ranks here, and they are saved with checkpoints.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from crosstill.errors import CheckpointError

FILE = "objectives.safetensors"


class Learnable:
    """Parts of objectives and of the balance, as one.

    Args:
        parts: By name of the objective, `Mix.parts`.
        balance: What balances the objectives.
    """

    def __init__(self, parts: nn.ModuleDict, balance: nn.Module) -> None:
        self.parts, self.balance = parts, balance
        self._all = nn.ModuleDict({"objectives": parts, "weighting": balance})

    def to(self, device: torch.device) -> None:
        """Moves everything to a device."""
        self._all.to(device)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that is trained, by name."""
        return ((name, p) for name, p in self._all.named_parameters() if p.requires_grad)

    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [parameter for _, parameter in self.named_parameters()]

    def zero_grad(self) -> None:
        """Gives everything a gradient of zeros, so that all ranks have the same to average."""
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def average(self, accelerator: Accelerator) -> None:
        """Averages the gradients over the ranks, as the student's wrapper does with its own."""
        if accelerator.num_processes == 1:
            return
        for parameter in self.parameters():
            parameter.grad = cast(Tensor, accelerator.reduce(parameter.grad, "mean"))

    def clip(self, model: nn.Module, bound: float, accelerator: Accelerator) -> Tensor:
        """Clips the student's and the parts' gradients as one, and the balance's by themselves.

        A balance learns another loss than the student: its gradient must not shorten the
        student's.

        Returns:
            The norm of the student's and the parts' gradients before.
        """
        balance = list(self.balance.parameters())
        if balance:
            nn.utils.clip_grad_norm_(balance, bound)
        together = [*model.parameters(), *self.parts.parameters()]
        return cast(Tensor, accelerator.clip_grad_norm_(together, bound))

    def join(self, optimizer: Optimizer, learning_rate: float) -> None:
        """Adds a parameter group to an optimizer, once; without weight decay."""
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [parameter for parameter in self.parameters() if id(parameter) not in known]
        if new:
            optimizer.add_param_group({"params": new, "lr": learning_rate, "weight_decay": 0.0})

    def save(self, folder: Path) -> None:
        """Writes everything to `objectives.safetensors`, where there is anything."""
        tensors = {name: t.detach().cpu().clone() for name, t in self._all.state_dict().items()}
        if tensors:
            save_file(tensors, folder / FILE)

    def load(self, folder: Path) -> None:
        """Reads everything back.

        Raises:
            CheckpointError: The file is missing, damaged or of other parts.
        """
        if not self._all.state_dict():
            return
        try:
            self._all.load_state_dict(load_file(folder / FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder / FILE} does not hold what these objectives learn ({error}). "
                f"Resume from another checkpoint."
            ) from error
