"""Measures a run's student before, during and after, on what the recipe gives for it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher
from crosstill.evaluation.samples import Samples
from crosstill.plain_json import write_json
from crosstill.text.encode import TextEncoder
from crosstill.training.callbacks import Measure
from crosstill.training.config import DistillConfig
from crosstill.training.measuring import (
    Measured,
    answered,
    compared,
    completions,
    measured,
    own_forward,
)
from crosstill.training.texts import read_prompts, read_texts

BEFORE, SAMPLES = "before.json", "teacher_samples.jsonl"


class Examiner:
    """Asks the teacher once, and the student as often as it is told to.

    Only the main process measures; in others everything is empty.

    Args:
        folder: The run's folder: it gets the teacher's texts and what was measured before.
        settings: Of the run.
        eval_texts: Held-out real texts: a file or a list.
        prompts: Prompts for the teacher by kind, each a file or a list.
        is_main: Whether this process measures.

    Raises:
        DataError: A text or a prompt cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        settings: DistillConfig,
        eval_texts: str | list[str],
        prompts: Mapping[str, Any],
        *,
        is_main: bool,
    ) -> None:
        self.folder, self.settings, self.is_main = folder, settings, is_main
        self.texts = read_texts(eval_texts)
        self.prompts = read_prompts(prompts)
        self.samples: Samples | None = None
        self.teacher_bits: float | None = None

    def ask(self, teacher: PreTrainedModel, encoder: TextEncoder) -> None:
        """Lets the teacher write from the prompts, and scores the real texts with it."""
        if not self.is_main:
            return
        settings = self.settings
        if self.texts:
            self.teacher_bits = bits_per_byte(teacher, encoder, self.texts)
        if self.prompts:
            self.samples = sample_teacher(
                teacher,
                encoder,
                self.prompts,
                max_new_tokens=settings.divergence_tokens,
                samples_per_prompt=settings.divergence_samples,
                seed=settings.seed,
                path=self.folder / SAMPLES,
                # as the rows are rendered: the student's arguments where the teacher has none
                chat_template_kwargs=settings.teacher_chat_template_kwargs
                or settings.chat_template_kwargs,
            )

    def measure(
        self, model: PreTrainedModel, encoder: TextEncoder, *, answers: bool = False
    ) -> Measured:
        """Measures a student as it is now.

        Args:
            model: The student, without wrappers.
            encoder: Its encoder.
            answers: Also let it answer the first prompt of each kind.
        """
        if not self.is_main:
            return Measured()
        settings = self.settings
        kwargs = settings.chat_template_kwargs
        with own_forward(model) as student:
            found = measured(student, encoder, self.texts, self.samples, kwargs)
            if answers and self.samples is not None:
                found.answers = answered(
                    student,
                    encoder,
                    self.prompts,
                    settings.divergence_tokens,
                    settings.seed,
                    kwargs,
                )
        return found

    def before(
        self,
        model: PreTrainedModel,
        encoder: TextEncoder,
        log: Callable[[dict[str, float]], None] | None = None,
    ) -> Measured:
        """Measures the untrained student, or reads what was measured when the run began.

        Args:
            model: The student.
            encoder: Its encoder.
            log: Where the numbers go, such as `trainer.log`.
        """
        path = self.folder / BEFORE
        if path.exists():
            return Measured(**json.loads(path.read_text(encoding="utf-8")))
        found = self.measure(model, encoder, answers=True)
        if self.is_main:
            write_json(path, vars(found))
            if log is not None and (line := found.log_line()):
                log(line)
        return found

    def on_the_way(
        self,
        every: int,
        measure: Callable[[], Measured],
        log: Callable[[dict[str, float]], None],
    ) -> list[Measure]:
        """The callback that measures during training, where there is anything to measure.

        Args:
            every: Steps between two measurements; 0: none.
            measure: Measures the student.
            log: Where the numbers go, such as `trainer.log`.
        """
        if not every or not (self.prompts or self.texts):
            return []
        return [Measure(every, lambda: measure().log_line(), log)]

    def summary(self, before: Measured, after: Measured) -> dict[str, Any]:
        """The keys of a run's summary that say what was measured."""
        return {
            **compared(before, after),
            "teacher_bits_per_byte": self.teacher_bits,
            "completions": completions(self.samples, before.answers, after.answers),
        }
