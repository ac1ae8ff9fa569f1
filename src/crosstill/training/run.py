"""A whole run: load, measure, train, measure again, save, report."""

import logging
import time
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from crosstill.data.read import ReadReport, read_source
from crosstill.hub import load_model, load_tokenizer
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder
from crosstill.training.adapters import lora_config
from crosstill.training.callbacks import StopOnSignal
from crosstill.training.examiner import Examiner
from crosstill.training.fingerprint import versions
from crosstill.training.measuring import Measured, counted
from crosstill.training.recipe import Recipe
from crosstill.training.rewording import reworded
from crosstill.training.running import (
    complete,
    free_place,
    held,
    is_main_process,
    show_alignment,
    train_to_end,
)
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.export import export
from crosstill.transfer.target import whole_tokenizer

logger = logging.getLogger(__name__)


def distill(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Runs a recipe from its data to its report.

    The output folder gets `model/` (and `adapter/` where one was trained), `metrics.jsonl`,
    `teacher_samples.jsonl`, checkpoints, `summary.json` and `report.html`.

    Args:
        recipe: What to run, from `load_recipe`.
        resume: Go on from the newest whole checkpoint of the output folder.
        overwrite: Begin anew; an earlier output folder gets another name.
        trust_remote_code: Run Python code that comes with a model. Never from a file.

    Returns:
        The summary, as it is in `summary.json`.

    Raises:
        CrosstillError: What its kind says; nothing is left half written.
        KeyboardInterrupt: SIGINT came; the step was finished and a checkpoint saved.
    """
    started = time.monotonic()
    hf_logging.disable_progress_bar()  # of files; the run has a bar of its own
    folder = Path(recipe.output_dir)
    with held(folder, recipe.plain(), resume=resume, overwrite=overwrite) as finished:
        if finished is not None:
            return finished
        run = _Run(recipe, folder, trust_remote_code)
        before = run.before()
        run.train(resume)
        after = run.measure(answers=True)
        summary = run.summary(before, after, time.monotonic() - started)
        if run.is_main:
            run.save()
            run.show_alignment()
            complete(folder, summary)
        run.trainer.accelerator.wait_for_everyone()
    return summary


class _Run:
    """The parts of a run, made in the order in which they can fail most cheaply."""

    def __init__(self, recipe: Recipe, folder: Path, trust_remote_code: bool) -> None:
        self.recipe, self.folder = recipe, folder
        self.data: ReadReport = read_source(
            recipe.train,
            recipe.train_split,
            on_bad_row="skip" if recipe.on_bad_row == "skip" else "raise",
            max_bad_rows=recipe.max_bad_rows,
        )
        settings = recipe.training
        self.examiner = Examiner(
            folder, settings, recipe.eval_texts, recipe.prompts, is_main=is_main_process()
        )
        self.stop = StopOnSignal()
        self.trainer = self._trainer(trust_remote_code)
        self.examiner.ask(self.trainer.teacher.model, self.trainer.teacher_encoder)
        every = settings.divergence_steps
        for callback in self.examiner.on_the_way(every, self.measure, self.trainer.log):
            self.trainer.add_callback(callback)

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.trainer.is_world_process_zero()

    @property
    def student(self) -> PreTrainedModel:
        """The student, without wrappers."""
        return self.trainer.accelerator.unwrap_model(cast(PreTrainedModel, self.trainer.model))

    def _trainer(self, trust: bool) -> DistillTrainer:
        recipe, settings = self.recipe, self.recipe.training
        revision = settings.student_revision
        tokenizer = load_tokenizer(recipe.student, revision=revision, trust_remote_code=trust)
        teacher_tokenizer = load_tokenizer(
            recipe.teacher, revision=settings.teacher_revision, trust_remote_code=trust
        )
        text_encoder(teacher_tokenizer)  # a tokenizer that cannot be read fails before weights load
        other = recipe.student_tokenizer
        target = None if other is None else whole_tokenizer(other, tokenizer)
        student = load_model(
            recipe.student,
            dtype=settings.student_dtype,
            revision=revision,
            trust_remote_code=trust,
        )
        if target is not None:
            logger.info(
                "the student gets another tokenizer: %s", transplant(student, tokenizer, target)
            )
        teacher = load_model(
            recipe.teacher,
            dtype=settings.teacher_dtype,
            revision=settings.teacher_revision,
            trust_remote_code=trust,
        )
        teacher.to(settings.device)  # type: ignore[arg-type]
        local, own = LocalTeacher(teacher, teacher_tokenizer), text_encoder(target or tokenizer)
        return DistillTrainer(
            student,
            local,
            settings,
            train_dataset=reworded(
                self.data.dataset, local, own, recipe.reword, [settings], self.folder
            ),
            processing_class=own.tokenizer,
            peft_config=None if recipe.peft is None else lora_config(recipe.peft),
            callbacks=[self.stop],
            **self._second_teacher(trust),
        )

    def _second_teacher(self, trust: bool) -> dict[str, Any]:
        """The teacher with the student's tokenizer and that tokenizer, where there is one."""
        name = self.recipe.same_tokenizer_teacher
        if name is None:
            return {}
        settings = self.recipe.training
        revision = settings.same_tokenizer_teacher_revision
        load = {"revision": revision, "trust_remote_code": trust}
        return {
            "same_tokenizer_teacher": load_model(name, dtype=settings.teacher_dtype, **load),
            "same_tokenizer_teacher_processing_class": load_tokenizer(name, **load),
        }

    def measure(self, *, answers: bool = False) -> Measured:
        """Measures the student as it is now."""
        return self.examiner.measure(self.student, self.trainer.student_encoder, answers=answers)

    def before(self) -> Measured:
        """Measures the untrained student, or reads what was measured when the run began."""
        encoder = self.trainer.student_encoder
        return self.examiner.before(self.student, encoder, self.trainer.log)

    def train(self, resume: bool) -> None:
        """Trains; leaves at a signal, with a checkpoint saved."""
        train_to_end(self.trainer, self.stop, resume=resume)

    def summary(self, before: Measured, after: Measured, seconds: float) -> dict[str, Any]:
        """Puts together what the run was and what came of it."""
        return {
            "student": self.recipe.student,
            "teacher": self.recipe.teacher,
            **self.examiner.summary(before, after),
            "steps": self.trainer.state.global_step,
            **counted(self.trainer.progress(), self.data.skipped),
            "seconds": round(seconds, 3),
            "ignored_columns": list(self.data.ignored_columns),
            "objective": "+".join(self.trainer.mix.objectives),
            "seed": self.recipe.training.seed,
            "versions": versions(),
            "recipe": self.recipe.plain(),
        }

    def show_alignment(self) -> None:
        """Writes how the two tokenizers meet on the beginning of the first rows."""
        student, teacher = self.trainer.student_encoder, self.trainer.teacher_encoder
        show_alignment(self.folder, self.data.dataset, student.tokenizer, teacher.tokenizer)

    def save(self) -> None:
        """Saves the student in Hugging Face format, merged where an adapter was trained."""
        model: Any = self.student
        if self.recipe.peft is not None:
            model.save_pretrained(free_place(self.folder / "adapter"))
            model = model.merge_and_unload()
        tokenizer = self.trainer.student_encoder.tokenizer
        export(model, tokenizer, free_place(self.folder / "model"))
