"""What a run says while it goes, and how it stops."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from crosstill.training.randomness import kept_randomness

METRICS = "metrics.jsonl"


class MetricsFile(TrainerCallback):
    """Appends every log line to `metrics.jsonl`, one JSON object a line.

    When a run resumes, lines of steps that it takes again are dropped first.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drops the lines after the step that the run begins or resumes at."""
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_bytes().split(b"\n")
            kept = [line for line in lines if _step_of(line) <= state.global_step]
            draft = self.path.with_name(f".{METRICS}.{os.getpid()}")
            draft.write_bytes(b"".join(line + b"\n" for line in kept if line))
            draft.replace(self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends one line."""
        if not state.is_world_process_zero or not logs:
            return
        seconds = round(time.monotonic() - self._started, 3)
        line = {"step": state.global_step, "seconds": seconds, **logs}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=float) + "\n")


def _step_of(line: bytes) -> float:
    """The step of a line; a line cut off by a kill belongs to none."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Progress(TrainerCallback):
    """A bar on stderr with loss, bits per byte and aligned share."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Opens the bar at the step the run begins with."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the numbers of a log line."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(summary_line(logs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def summary_line(logs: Mapping[str, Any]) -> str:
    """Writes a log line for a person.

    Example:
        >>> summary_line({"loss": 0.5, "bits_per_byte": 1.234, "aligned_byte_fraction": 0.995})
        'loss 0.5, 1.234 bits/byte, aligned 99.5%'
    """
    parts = [f"loss {logs['loss']:.4g}"]
    if "bits_per_byte" in logs:
        parts.append(f"{logs['bits_per_byte']:.3f} bits/byte")
    if "aligned_byte_fraction" in logs:
        parts.append(f"aligned {logs['aligned_byte_fraction']:.1%}")
    return ", ".join(parts)


class Measure(TrainerCallback):
    """Measures the student every so many steps.

    Args:
        every: Steps between two measurements.
        measure: Returns numbers by name; each process that writes logs calls it.
        log: Where the numbers go, such as `trainer.log`.
    """

    def __init__(
        self,
        every: int,
        measure: Callable[[], dict[str, float]],
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self.every, self.measure, self.log = every, measure, log

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures where the step is due; the last one is measured after training anyway."""
        due = state.global_step % self.every == 0 and state.global_step < state.max_steps
        if due and state.is_world_process_zero:
            with kept_randomness():
                line = self.measure()
            due_anyway = control.should_log  # transformers takes any log for the one that was due
            self.log(line)
            control.should_log = due_anyway


class StopOnSignal(TrainerCallback):
    """Finishes the step, saves and stops at the first SIGINT or SIGTERM; a second one ends now.

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes the signals over; only a main thread may."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Asks for a checkpoint and the end, if a signal came."""
        if self.received is not None:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gives the signals back."""
        self.restore()

    def restore(self) -> None:
        """Gives the signals back to who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            return
        self.restore()
        os.kill(os.getpid(), number)
