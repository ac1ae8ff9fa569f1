"""A transfer, whole: a model gets another tokenizer, is taught by what it was, and is exported."""

import gc
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from crosstill.data.read import read_source
from crosstill.hub import load_model, load_tokenizer
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import text_encoder
from crosstill.training.adapters import is_adapted, save_weights
from crosstill.training.callbacks import StopOnSignal
from crosstill.training.examiner import Examiner
from crosstill.training.measuring import Measured
from crosstill.training.rewording import reworded
from crosstill.training.running import (
    complete,
    free_place,
    held,
    is_main_process,
    show_alignment,
    train_to_end,
)
from crosstill.training.texts import read_texts
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer.card import model_card
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.enriched import enrich, load_either, plain_of
from crosstill.transfer.export import export
from crosstill.transfer.modes import prepare_mode, tables
from crosstill.transfer.recipe import Stage, TransferRecipe
from crosstill.transfer.record import Record
from crosstill.transfer.self_teacher import self_teacher
from crosstill.transfer.summary import gather_metrics, summary
from crosstill.transfer.tables import Tables, read_tables
from crosstill.transfer.target import target_tokenizer

logger = logging.getLogger(__name__)

INITIAL = "0-initial"
INITIAL_ROWS = 4096
"""Rows of the training data that an initialiser gets to read at most."""


def transfer(
    recipe: TransferRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Moves a model to another tokenizer, from its first embeddings to its report.

    The output folder gets `model/` (with a model card, and `adapter/` where one was trained),
    `metrics.jsonl`, `teacher_samples.jsonl`, `stages/` with the model and the checkpoints of each
    stage, `summary.json` and `report.html`.

    Args:
        recipe: What to run, from `load_transfer`.
        resume: Go on after the last finished stage, from the newest whole checkpoint of the next.
        overwrite: Begin anew; an earlier output folder gets another name.
        trust_remote_code: Run Python code that comes with a model. Never from a file.

    Returns:
        The summary, as it is in `summary.json`.

    Raises:
        CrosstillError: What its kind says; nothing is left half written.
        KeyboardInterrupt: SIGINT came; in a stage, the step was finished and a checkpoint saved.
    """
    started = time.monotonic()
    hf_logging.disable_progress_bar()  # of files; the run has a bar of its own
    folder = Path(recipe.output_dir)
    with held(folder, recipe.plain(), resume=resume, overwrite=overwrite) as finished:
        if finished is not None:
            return finished
        run = _Run(recipe, folder, trust_remote_code)
        before = run.begin()
        for stage in recipe.stages:
            run.train(stage, resume)
        found = run.finish(before, started)
        PartialState().wait_for_everyone()
    return found


class _Run:
    """The parts of a run, made in the order in which they can fail most cheaply."""

    def __init__(self, recipe: TransferRecipe, folder: Path, trust_remote_code: bool) -> None:
        self.recipe, self.folder, self.trust = recipe, folder, trust_remote_code
        self.is_main = is_main_process()
        self.data = None
        if recipe.train is not None:
            self.data = read_source(
                recipe.train,
                recipe.train_split,
                on_bad_row="skip" if recipe.on_bad_row == "skip" else "raise",
                max_bad_rows=recipe.max_bad_rows,
            )
        self.examiner = Examiner(
            folder, recipe.training, recipe.eval_texts, recipe.prompts, is_main=self.is_main
        )
        self.texts = self._initial_texts()
        self.record = Record(folder)
        source = load_tokenizer(
            recipe.model, revision=recipe.revision, trust_remote_code=trust_remote_code
        )
        self.source = text_encoder(source)
        target = target_tokenizer(
            recipe.to,
            source,
            special_tokens=cast(Any, recipe.special_tokens),
            revision=recipe.to_revision,
            trust_remote_code=trust_remote_code,
        )
        self.target = text_encoder(target)
        self.student: PreTrainedModel
        self.teacher: LocalTeacher
        self.rows: Dataset | None

    def _initial_texts(self) -> Sequence[str | Mapping[str, Any]]:
        """The texts that an initialiser may read, or the first rows as they will be trained on."""
        if self.recipe.initial_texts or self.data is None:
            return read_texts(self.recipe.initial_texts)
        rows = cast(Iterable[Mapping[str, Any]], self.data.dataset)  # mistyped upstream
        return list(islice(rows, INITIAL_ROWS))

    # --- beginning ------------------------------------------------------------------------------

    def begin(self) -> Measured:
        """Asks the model as it is, gives it its new embeddings, and measures it with them."""
        settings = self.recipe.training
        source = self._load(
            settings.student_dtype if self.recipe.one_body else settings.teacher_dtype
        )
        source.to(settings.device)  # type: ignore[arg-type]
        self.examiner.ask(source, self.source)
        if self.recipe.one_body and self.stages_left():
            fast = torch.bfloat16 if settings.bf16 else None
            self.teacher = self_teacher(source, self.source, ["embeddings"], autocast=fast)
        elif self.stages_left():
            self.teacher = LocalTeacher(source, self.source)
        self.rows = self._rows()
        if self.is_main and not self.record.entries:
            shared = self.recipe.one_body
            self._initialise(source if shared else self._load(settings.student_dtype))
            PartialState().wait_for_everyone()
        else:
            PartialState().wait_for_everyone()
            self._go_on(source)
        self.student.to(settings.device)  # type: ignore[arg-type]
        return self.examiner.before(self.student, self.target)

    def _rows(self) -> Dataset | None:
        """The rows that are trained on, with the words put in that the recipe asks for."""
        if self.data is None or not self.stages_left():
            return None
        settings = [stage.settings for stage in self.recipe.stages]
        share = self.recipe.reword
        return reworded(self.data.dataset, self.teacher, self.target, share, settings, self.folder)

    def _load(self, dtype: str) -> PreTrainedModel:
        recipe = self.recipe
        return load_model(
            recipe.model, dtype=dtype, revision=recipe.revision, trust_remote_code=self.trust
        )

    def _initialise(self, model: PreTrainedModel) -> None:
        recipe, started = self.recipe, time.monotonic()
        settings = recipe.training
        model.to(settings.device)  # type: ignore[arg-type]
        original = Tables(read_tables(model).input.clone()) if recipe.enriched else None
        with torch.autocast(settings.device.type, torch.bfloat16, enabled=bool(settings.bf16)):
            report = transplant(
                model,
                self.source.tokenizer,
                self.target.tokenizer,
                initial=recipe.initial,
                texts=self.texts,
                seed=settings.seed,
                compile_blocks=settings.compile_blocks,
            )
        logger.info("first embeddings for %s: %s", recipe.to, report)
        self.student = model
        if original is not None:
            self.student = enrich(model, original, self.source, self.target)
        facts = {"report": asdict(report), "seconds": round(time.monotonic() - started, 3)}
        self._keep(INITIAL, recipe.beginning(), facts)

    def _go_on(self, source: PreTrainedModel) -> None:
        """Takes the model of the last finished part; where the teacher shares its body, that."""
        self.record = Record(self.folder)
        self.record.only(INITIAL, *(stage.name for stage in self.recipe.stages))
        self.record.entry(INITIAL, self.recipe.beginning())
        last = INITIAL
        for stage in self.recipe.stages:
            if self.record.entry(stage.name, self._made_of(stage)) is None:
                break
            last = stage.name
        dtype = self.recipe.training.student_dtype
        self.student = load_either(self.record.check(last), dtype=dtype)
        if self.recipe.one_body and self.stages_left():
            adopt_body(plain_of(self.student), source)

    def stages_left(self) -> list[Stage]:
        """The stages that are not finished."""
        return [stage for stage in self.recipe.stages if stage.name not in self.record.entries]

    def _keep(self, name: str, made_of: dict[str, Any], facts: dict[str, Any]) -> None:
        """Saves the model as it is and enters it into the record."""
        place = free_place(self.record.model_folder(name))
        export(self.student, self.target.tokenizer, place, verify=False)
        self.record.add(name, made_of, facts)

    # --- stages ---------------------------------------------------------------------------------

    def _made_of(self, stage: Stage) -> dict[str, Any]:
        """What decides what a stage does, beside the model it begins with."""
        recipe = self.recipe
        settings = {"stage": stage.train, "peft": recipe.peft, "train": recipe.train}
        settings["reword"] = recipe.reword
        return {**settings, "train_split": recipe.train_split, **stage.settings.resolved()}

    def train(self, stage: Stage, resume: bool) -> None:
        """Trains a stage, unless it is finished; leaves at a signal, with a checkpoint saved."""
        if stage not in self.stages_left():
            return
        logger.info("stage %s", stage.name)
        started, stop = time.monotonic(), StopOnSignal()
        trainer = self._trainer(stage, stop)
        train_to_end(trainer, stop, resume=resume and stage.settings.folder.exists())
        self.student = self._trained(trainer)
        facts = {
            "train": stage.train,
            "objective": "+".join(trainer.mix.objectives),
            "steps": trainer.state.global_step,
            "sums": trainer.progress(),
            "seconds": round(time.monotonic() - started, 3),
        }
        trainer.accelerator.free_memory()  # the optimizer's, before the next stage makes its own
        del trainer
        gc.collect()
        self._end(stage, facts)

    def _trainer(self, stage: Stage, stop: StopOnSignal) -> DistillTrainer:
        assert self.rows is not None  # noqa: S101 - a stage is left
        settings = stage.settings
        model = prepare_mode(self.student, stage.train, peft=self.recipe.peft, seed=settings.seed)
        trainer = DistillTrainer(
            cast(PreTrainedModel, model),
            self.teacher,
            settings,
            train_dataset=self.rows,
            processing_class=self.target.tokenizer,
            callbacks=[stop],
        )

        def measure() -> Measured:
            student = trainer.accelerator.unwrap_model(cast(nn.Module, trainer.model))
            return self.examiner.measure(student, self.target)

        for callback in self.examiner.on_the_way(settings.divergence_steps, measure, trainer.log):
            trainer.add_callback(callback)
        return trainer

    def _trained(self, trainer: DistillTrainer) -> PreTrainedModel:
        """The student without wrappers, and with its adapter merged, which is saved before."""
        model: Any = trainer.accelerator.unwrap_model(
            cast(nn.Module, trainer.model), keep_fp32_wrapper=False
        )
        if is_adapted(model):
            if self.is_main:
                save_weights(model, free_place(self.folder / "adapter"))
            model = model.merge_and_unload()
        return model

    def _end(self, stage: Stage, facts: dict[str, Any]) -> None:
        """Measures what a stage left, saves it and enters it into the record."""
        is_last = stage is self.recipe.stages[-1]
        found = self.examiner.measure(self.student, self.target, answers=is_last)
        if self.is_main:
            self._keep(stage.name, self._made_of(stage), {**facts, "measured": vars(found)})
            gather_metrics(self.folder, self.record)
        PartialState().wait_for_everyone()
        self.record = Record(self.folder)

    # --- the end --------------------------------------------------------------------------------

    def finish(self, before: Measured, started: float) -> dict[str, Any]:
        """Exports the model with its card, and writes the summary and the report."""
        recipe = self.recipe
        names = [stage.name for stage in recipe.stages]
        after = Measured(**self.record.entries[names[-1]]["measured"]) if names else before
        found = summary(
            recipe,
            self.record,
            self.examiner.summary(before, after),
            self.data,
            vocabulary=self.target.vocab_size,
            seconds=time.monotonic() - started,
        )
        if self.is_main:
            gather_metrics(self.folder, self.record)
            card = {"README.md": model_card(found)}
            place = free_place(self.folder / "model")
            export(self.student, self.target.tokenizer, place, files=card)
            if self.data is not None:
                tokenizers = self.target.tokenizer, self.source.tokenizer
                show_alignment(self.folder, self.data.dataset, *tokenizers)
            complete(self.folder, found)
        return found


def adopt_body(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Puts the weights of an equal body into a model, so that memory has one copy less."""
    own = {id(weight) for end in tables(model) for weight in end.parameters()}
    theirs = dict(source.named_parameters())
    for name, weight in list(model.named_parameters()):
        if id(weight) not in own:
            place, _, leaf = name.rpartition(".")
            model.get_submodule(place).register_parameter(leaf, theirs[name])
