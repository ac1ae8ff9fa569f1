"""Sums that a run adds up, and what is reported of them."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from accelerate import Accelerator
from jaxtyping import Bool, Int64
from torch import Tensor

from crosstill.data.collate import REASONS
from crosstill.objectives import MixLoss, PairBatch


class Sums:
    """Named sums on the device; nothing is read back before somebody asks.

    Example:
        >>> sums = Sums()
        >>> sums.add("rows", 2); sums.add("rows", torch.tensor(3))
        >>> sums.total()
        {'rows': 5.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds a number or a scalar tensor."""
        value = value.detach().double() if isinstance(value, Tensor) else float(value)
        self._sums[name] = self._sums.get(name, 0.0) + value

    def clear(self) -> None:
        """Forgets all sums."""
        self._sums.clear()

    def total(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Adds the sums up over the ranks; every rank must call it with the same names."""
        names = sorted(self._sums)
        if accelerator is None or accelerator.num_processes == 1:
            return {name: float(self._sums[name]) for name in names}
        device = accelerator.device
        vector = torch.tensor([float(self._sums[n]) for n in names], device=device)
        summed = reduced(vector.double(), accelerator)
        return dict(zip(names, summed.tolist(), strict=True))


def reduced(value: Tensor, accelerator: Accelerator) -> Tensor:
    """Adds a tensor up over the ranks."""
    if accelerator.num_processes == 1:
        return value
    return cast(Tensor, accelerator.reduce(value, "sum"))


def add_batch(sums: Sums, batch: PairBatch) -> None:
    """Counts what a micro-batch holds: rows, tokens, bytes and skipped rows by reason."""
    sums.add("rows", batch["row_index"].numel())
    sums.add("student_tokens", batch["student_attention_mask"].sum())
    sums.add("teacher_tokens", batch["teacher_attention_mask"].sum())
    sums.add("student_bytes", batch["student_bytes"].sum())
    sums.add("aligned_bytes", batch["aligned_bytes"].sum())
    sums.add("cut_bytes", batch["cut_bytes"].sum())
    for reason, count in zip(REASONS, batch["skipped"], strict=True):
        sums.add(f"skipped/{reason}", count)


def add_loss(sums: Sums, loss: MixLoss) -> None:
    """Adds the parts of a micro-batch's loss."""
    for name, (value, count) in loss.metrics().items():
        sums.add(f"value/{name}", value)
        sums.add(f"count/{name}", count)


def report(step: Mapping[str, float], run: Mapping[str, float]) -> dict[str, float]:
    """Divides sums into what a log line says.

    Args:
        step: Sums since the last line.
        run: Sums since the run began.

    Returns:
        `loss/NAME` (mean of an objective over its chunks or tokens, nats), `NAME/gap` (nats),
        `bits_per_byte` (student, on supervised bytes, where measured), `aligned_byte_fraction`,
        and, since the run began, `student_tokens` and `rows_skipped/REASON` for what occurred.
    """
    line: dict[str, float] = {}
    for key, value in step.items():
        kind, _, name = key.partition("/")
        if kind == "value":
            shown = name if "/" in name else f"loss/{name}"
            line[shown] = value / max(step[f"count/{name}"], 1.0)
    line.update(bits_and_share(step))
    line["student_tokens"] = run.get("student_tokens", 0.0)
    skipped = {key: value for key, value in run.items() if key.startswith("skipped/") and value}
    return line | {f"rows_{key}": value for key, value in skipped.items()}


def evaluated(
    sums: Mapping[str, float], weights: Mapping[str, float], prefix: str
) -> dict[str, float]:
    """Divides the sums of an evaluation into its metrics.

    Args:
        sums: Over the held-out rows.
        weights: Of the objectives by name.
        prefix: Of the metrics' names.

    Returns:
        The weighted loss, each objective's mean (nats), the student's bits per supervised byte and
        the share of bytes in chunks.
    """
    line, loss = {}, 0.0
    for name, weight in weights.items():
        mean = sums.get(f"value/{name}", 0.0) / max(sums.get(f"count/{name}", 0.0), 1.0)
        line[f"{prefix}_loss/{name}"] = mean
        loss += weight * mean
    shares = bits_and_share(sums)
    if "bits_per_byte" in shares:
        shares["supervised_bits_per_byte"] = shares.pop("bits_per_byte")
    return {f"{prefix}_loss": loss, **line} | {f"{prefix}_{k}": v for k, v in shares.items()}


def bits_and_share(sums: Mapping[str, float]) -> dict[str, float]:
    """The student's bits per byte and the share of bytes in chunks, where anything was summed."""
    line = {}
    if sums.get("measured_bytes"):
        bits = sums["measured_nats"] / math.log(2)
        line["bits_per_byte"] = bits / sums["measured_bytes"]
    if sums.get("student_bytes"):
        line["aligned_byte_fraction"] = sums["aligned_bytes"] / sums["student_bytes"]
    return line


def supervised_bytes(
    labels: Int64[Tensor, "B Ts"], lengths: Int64[Tensor, " V"], supervised: Bool[Tensor, "B Ts"]
) -> Tensor:
    """Counts the bytes that the supervised tokens spell."""
    return lengths.to(labels.device)[labels.clamp(min=0)].masked_fill(~supervised, 0).sum()
