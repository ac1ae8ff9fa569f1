"""The guard against numbers that are not finite: it acts before a weight is touched."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosstill.errors import NumericsError
from crosstill.objectives import MixLoss, PairBatch


@dataclass
class StepRows:
    """The rows of the step under way, for messages."""

    rows: list[int]

    def text(self) -> str:
        """The row numbers, or that there are none."""
        known = [row for row in self.rows if row >= 0]
        return f"rows {known}" if known else "rows without numbers (a stream)"


def check_loss(loss: MixLoss, batch: PairBatch, step: int, folder: Path) -> None:
    """Stops where a micro-batch's loss is not finite, before its backward pass.

    Writes `nonfinite.json` with the rows and their ids, so that the case can be repeated.

    Raises:
        NumericsError: Names the step, the rows and the objectives.
    """
    total = float(loss.total.detach())
    if math.isfinite(total):
        return
    bad = [name for name, part in loss.parts.items() if not bool(torch.isfinite(part.total))]
    rows = StepRows(batch["row_index"].tolist())
    names = ("student_input_ids", "teacher_input_ids", "student_chunk", "teacher_chunk")
    note = {"step": step, "objectives": bad, "rows": rows.rows}
    note |= {name: batch[name].tolist() for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nonfinite.json").write_text(json.dumps(note), encoding="utf-8")
    raise NumericsError(
        f"the loss is {total} at step {step} in {rows.text()}, in objective "
        f"{', '.join(bad) or 'sum'}; no weight was changed. The ids are in "
        f"{folder / 'nonfinite.json'}. Lower learning_rate, set max_grad_norm, or mend the rows."
    )


class GradientGuard(TrainerCallback):
    """Stops before an optimizer step whose gradients are not finite.

    Args:
        rows: The rows of the step under way, kept up to date by the trainer.
        more: What is trained beside the student, by name.
    """

    def __init__(
        self, rows: StepRows, more: Callable[[], Iterable[tuple[str, nn.Parameter]]] = tuple
    ) -> None:
        self.rows, self._more = rows, more

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        **kwargs: object,
    ) -> None:
        """Raises NumericsError naming the step, the rows and the first parameters."""
        trained = [*model.named_parameters(), *self._more()]
        named = [(n, p.grad) for n, p in trained if p.grad is not None]
        bad = non_finite([gradient for _, gradient in named])
        if not bad:
            return
        # Clipping by an infinite norm spreads to every parameter; then no name tells anything.
        first = named[bad[0]][0]
        where = "every parameter" if len(bad) == len(named) else f"{len(bad)} (first: {first})"
        raise NumericsError(
            f"the gradient is not finite at step {state.global_step + 1} in {self.rows.text()}, in "
            f"{where}; no weight was changed. Lower "
            f"learning_rate, or use float32 (bf16: false)."
        )


def non_finite(tensors: list[Tensor]) -> list[int]:
    """Finds which tensors hold a number that is not finite; one look at the device where none does.

    Example:
        >>> non_finite([torch.zeros(2), torch.tensor([1.0, float("inf")])])
        [1]
    """
    # A finite Euclidean norm shows that every number is finite, and is cheap to find. An infinite
    # one may be the square of a large number: there the largest absolute value decides.
    suspects = _infinite_norms(tensors, 2.0, range(len(tensors)))
    return _infinite_norms(tensors, float("inf"), suspects)


def _infinite_norms(tensors: list[Tensor], order: float, among: Sequence[int]) -> list[int]:
    """Of the tensors with these indices those whose norm is not finite."""
    if not among:
        return []
    chosen = [tensors[index] for index in among]
    norms = torch._foreach_norm(chosen, order)  # pyright: ignore[reportPrivateImportUsage]
    bad = ~torch.isfinite(torch.stack([norm.float() for norm in norms]))
    return [among[place] for place in bad.nonzero().flatten().tolist()]
