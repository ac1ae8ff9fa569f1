"""A whole run: load, measure, train, measure again, save, report."""

import json
import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from crosstill.align.chunks import align
from crosstill.align.view import fragment
from crosstill.data.read import ReadReport, read_source
from crosstill.errors import ConfigError
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher
from crosstill.evaluation.samples import Samples
from crosstill.hub import load_model, load_tokenizer
from crosstill.plain_json import write_json
from crosstill.report.html import write_report
from crosstill.text.encode import text_encoder
from crosstill.training.callbacks import Measure, StopOnSignal
from crosstill.training.checkpoint import newest_complete
from crosstill.training.fingerprint import versions
from crosstill.training.measuring import (
    Measured,
    answered,
    compared,
    completions,
    counted,
    measured,
    own_forward,
)
from crosstill.training.output import claimed
from crosstill.training.recipe import Recipe
from crosstill.training.texts import read_prompts, read_texts, row_text
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.export import export

logger = logging.getLogger(__name__)

SUMMARY, BEFORE, SAMPLES = "summary.json", "before.json", "teacher_samples.jsonl"
RECIPE, ALIGNMENT = "recipe.json", "alignment.html"
SHOWN, SHOWN_ROWS = 300, 3


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
    with _held(folder, resume=resume, overwrite=overwrite):
        if resume and (folder / SUMMARY).exists():
            logger.warning("%s is finished: there is nothing to resume", folder)
            return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        _note_recipe(recipe, folder)
        run = _Run(recipe, folder, trust_remote_code)
        before = run.before()
        run.train(resume)
        after = run.measure(answers=True)
        summary = run.summary(before, after, time.monotonic() - started)
        if run.is_main:
            run.save()
            run.show_alignment()
            write_json(folder / SUMMARY, summary)
            write_report(folder)
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
        self.texts = read_texts(recipe.eval_texts)
        self.prompts = read_prompts(recipe.prompts)
        self.stop = StopOnSignal()
        self.trainer = self._trainer(trust_remote_code)
        self.samples = self._samples() if self.prompts else None
        every = recipe.training.divergence_steps
        if every and (self.samples or self.texts):
            measure = Measure(every, lambda: self.measure().log_line(), self.trainer.log)
            self.trainer.add_callback(measure)

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
        target = load_tokenizer(recipe.student_tokenizer) if recipe.student_tokenizer else None
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
        return DistillTrainer(
            student,
            teacher,
            settings,
            train_dataset=self.data.dataset,
            processing_class=target or tokenizer,
            teacher_processing_class=teacher_tokenizer,
            peft_config=_peft_config(recipe.peft),
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

    def _samples(self) -> Samples | None:
        """The teacher's own texts; the main process writes them, and it alone reads them."""
        if not self.is_main:
            return None
        settings = self.recipe.training
        return sample_teacher(
            self.trainer.teacher.model,
            self.trainer.teacher_encoder,
            self.prompts,
            max_new_tokens=settings.divergence_tokens,
            samples_per_prompt=settings.divergence_samples,
            seed=settings.seed,
            path=self.folder / SAMPLES,
            # as the rows are rendered: the student's arguments where the teacher has none
            chat_template_kwargs=settings.teacher_chat_template_kwargs
            or settings.chat_template_kwargs,
        )

    def measure(self, *, answers: bool = False) -> Measured:
        """Measures the student as it is now; other ranks than the main one measure nothing.

        Args:
            answers: Also let it answer the first prompt of each kind.
        """
        if not self.is_main:
            return Measured()
        with own_forward(self.student) as student:
            encoder = self.trainer.student_encoder
            settings = self.recipe.training
            kwargs = settings.chat_template_kwargs
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

    def before(self) -> Measured:
        """Measures the untrained student, or reads what was measured when the run began."""
        path = self.folder / BEFORE
        if path.exists():
            return Measured(**json.loads(path.read_text(encoding="utf-8")))
        found = self.measure(answers=True)
        if self.is_main:
            write_json(path, vars(found))
            if line := found.log_line():
                self.trainer.log(line)
        return found

    def train(self, resume: bool) -> None:
        """Trains; leaves at a signal, with a checkpoint saved.

        Raises:
            KeyboardInterrupt: SIGINT came.
            SystemExit: SIGTERM came.
        """
        start = resume
        if resume:
            found, refused = newest_complete(self.folder)
            if found is None:
                reasons = "; ".join(refused) or "there is none yet"
                logger.warning("no whole checkpoint (%s): training starts at step 0", reasons)
                start = False
        try:
            self.trainer.train(resume_from_checkpoint=start or None)
        finally:
            self.stop.restore()
        if self.stop.received is not None:
            step = self.trainer.state.global_step
            logger.warning("stopped at step %d with a checkpoint; --resume goes on", step)
            if self.stop.received == signal.SIGTERM:
                raise SystemExit(128 + signal.SIGTERM)
            raise KeyboardInterrupt

    def summary(self, before: Measured, after: Measured, seconds: float) -> dict[str, Any]:
        """Puts together what the run was and what came of it."""
        teacher_bits = None
        if self.is_main and self.texts:
            model, encoder = self.trainer.teacher.model, self.trainer.teacher_encoder
            teacher_bits = bits_per_byte(model, encoder, self.texts)
        return {
            "student": self.recipe.student,
            "teacher": self.recipe.teacher,
            **compared(before, after),
            "teacher_bits_per_byte": teacher_bits,
            "steps": self.trainer.state.global_step,
            **counted(self.trainer.progress(), self.data.skipped),
            "seconds": round(seconds, 3),
            "ignored_columns": list(self.data.ignored_columns),
            "objective": "+".join(self.trainer.mix.objectives),
            "seed": self.recipe.training.seed,
            "versions": versions(),
            "completions": completions(self.samples, before.answers, after.answers),
            "recipe": self.recipe.plain(),
        }

    def show_alignment(self) -> None:
        """Writes how the two tokenizers meet on the beginning of the first rows."""
        tokenizers = self.trainer.student_encoder.tokenizer, self.trainer.teacher_encoder.tokenizer
        rows = cast(Iterable[Any], self.data.dataset)  # mistyped upstream
        texts = [row_text(row)[:SHOWN] for row in islice(rows, SHOWN_ROWS)]
        shown = [fragment(align(text, *tokenizers)) for text in texts if text]
        (self.folder / ALIGNMENT).write_text("\n".join(shown), encoding="utf-8")

    def save(self) -> None:
        """Saves the student in Hugging Face format, merged where an adapter was trained."""
        model: Any = self.student
        tokenizer = self.trainer.student_encoder.tokenizer
        for name in ("adapter", "model"):
            if (self.folder / name).exists():  # of an attempt that ended while it was saving
                (self.folder / name).rename(self.folder / f"{name}.{time.strftime('%H%M%S')}")
        if self.recipe.peft is not None:
            model.save_pretrained(self.folder / "adapter")
            model = model.merge_and_unload()
        export(model, tokenizer, self.folder / "model")


@contextmanager
def _held(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Claims the output folder in the one process that writes."""
    if int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    with claimed(folder, resume=resume, overwrite=overwrite) as aside:
        if aside is not None:
            logger.warning("what was in %s is now in %s", folder, aside)
        yield


def _note_recipe(recipe: Recipe, folder: Path) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(folder / RECIPE, recipe.plain())


def _peft_config(settings: dict[str, Any] | None) -> Any:
    if settings is None:
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError("peft needs the extra: pip install 'crosstill[peft]'") from error
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
    except TypeError as error:
        raise ConfigError(f"peft: {error}; expected settings of peft.LoraConfig") from error
