"""The trainer: transformers' loop round our signals and objectives."""

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)

from crosstill.blocks import compile_blocks
from crosstill.errors import ConfigError
from crosstill.heads import HeadSplit
from crosstill.objectives import MixLoss, PairBatch, Signal
from crosstill.objectives.views import MAIN, SAME
from crosstill.teachers.local import LocalTeacher
from crosstill.training import meters
from crosstill.training.callbacks import MetricsFile, Progress
from crosstill.training.checkpoint import Origin
from crosstill.training.config import DistillConfig
from crosstill.training.fingerprint import (
    data_fingerprint,
    model_fingerprint,
    tokenizer_fingerprint,
)
from crosstill.training.guard import GradientGuard, StepRows, check_loss
from crosstill.training.randomness import kept_randomness
from crosstill.training.rates import set_embedding_rate
from crosstill.training.rows import numbered
from crosstill.training.saving import SavingTrainer
from crosstill.training.setup import (
    adapted,
    check_optimizers,
    pair_collator,
    resolve_student,
    resolve_teachers,
    student_mix,
)
from crosstill.training.stepper import Stepper
from crosstill.training.student import Forward, StudentStep
from crosstill.training.teaching import Teachers

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)


class DistillTrainer(SavingTrainer):
    """Trains a student to give its teacher's probabilities, whatever their tokenizers.

    Args:
        model: The student: a model, or a folder or hub name.
        teacher_model: The teacher: a model, or a folder or hub name, or a `LocalTeacher`, such as
            one that shares the student's body. It is never changed.
        same_tokenizer_teacher: A second teacher, with the student's tokenizer, for objectives
            with `teacher: same`; given like the teacher.
        args: The settings.
        train_dataset: Rows with `text`, `messages`, or `prompt` and `completion`.
        eval_dataset: Rows, or several sets of them by name.
        processing_class: The student's tokenizer; needed where the student is no name.
        teacher_processing_class: The teacher's tokenizer; needed where the teacher is no name.
        same_tokenizer_teacher_processing_class: The second teacher's tokenizer, to be compared
            with the student's where that teacher is no name.
        peft_config: Train an adapter instead of all weights.
        callbacks: As for `transformers.Trainer`.
        optimizers: As for `transformers.Trainer`.

    Raises:
        ConfigError: A setting, or a pair of settings, that cannot work.
        TokenizerError: A tokenizer that cannot be read as bytes.

    Example:
        ```python
        trainer = DistillTrainer(
            "small-model", "large-model", DistillConfig(output_dir="runs/one"), train_dataset=rows
        )
        trainer.train()
        ```
    """

    # transformers asks this before it divides by the number of micro-batches: our loss is divided
    # once, by the counts of the whole step.
    loss_is_scaled_for_ga = True

    args: DistillConfig

    def __init__(
        self,
        model: PreTrainedModel | str,
        teacher_model: LocalTeacher | PreTrainedModel | str,
        args: DistillConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerFast | None = None,
        teacher_processing_class: PreTrainedTokenizerFast | None = None,
        peft_config: "PeftConfig | None" = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
        *,
        same_tokenizer_teacher: LocalTeacher | PreTrainedModel | str | None = None,
        same_tokenizer_teacher_processing_class: PreTrainedTokenizerFast | None = None,
    ) -> None:
        if not isinstance(args, DistillConfig):
            raise ConfigError(f"args is a {type(args).__name__}, expected a DistillConfig")
        student, self.student_encoder = resolve_student(model, processing_class, args)
        named = resolve_teachers(
            (teacher_model, teacher_processing_class),
            (same_tokenizer_teacher, same_tokenizer_teacher_processing_class),
            student,
            self.student_encoder,
            args,
        )
        self.mix = student_mix(student, self.student_encoder, args)
        self.teachers = Teachers(named, self.mix)
        self.teacher = named[MAIN]
        self.teacher_encoder = self.teacher.encoder
        self._step_rows = StepRows([])
        self._since_log, self._run = meters.Sums(), meters.Sums()
        self._train_data = train_dataset
        self._origin: Origin | None = None
        super().__init__(
            model=adapted(student, peft_config, args),
            args=args,
            data_collator=pair_collator(self.student_encoder, self.teacher_encoder, args),
            train_dataset=numbered(train_dataset),
            eval_dataset=_each(eval_dataset, numbered),
            processing_class=self.student_encoder.tokenizer,
            callbacks=[
                *(callbacks or []),
                GradientGuard(self._step_rows, lambda: self.learnable.named_parameters()),
                MetricsFile(args.folder),
            ],
            optimizers=optimizers,  # type: ignore[arg-type]  # an optimizer may stand alone
        )
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for older versions
        self._replace_progress()
        self.teachers.to(self.args.device)
        self._prepare_step(args)
        check_optimizers(self.learnable, optimizers[1])

    # --- setting up -----------------------------------------------------------------------------

    def _prepare_step(self, args: DistillConfig) -> None:
        """Makes what a step is taken with, once the student is where it will be trained."""
        student = cast(nn.Module, self.model)
        self.mix.prepare(self.teachers.pairs(student, self.student_encoder))
        lengths = torch.from_numpy(self.student_encoder.bytes.lengths).long()
        self.student_step = StudentStep(self.mix, student, args.fused_head, lengths)
        self.stepper = Stepper(self.student_step, student, args, self.accelerator)
        self.learnable = self.stepper.learnable
        self.learnable.to(self.args.device)
        if args.compile_blocks:
            teachers = [(one.model, one.encoder) for one in self.teachers.by_name.values()]
            for model, encoder in ((student, self.student_encoder), *teachers):
                compile_blocks(model, args.device, longest=encoder.budget(args.max_length))

    def _replace_progress(self) -> None:
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress())

    @property
    def head(self) -> HeadSplit | None:
        """The student's head, where its logits are made block by block."""
        return self.student_step.head

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Makes the optimizer, with a group for what the objectives learn themselves."""
        optimizer = super().create_optimizer(*args, **kwargs)
        self.learnable.join(optimizer, self.args.parts_learning_rate or self.args.learning_rate)
        model = cast(nn.Module, self.model)
        set_embedding_rate(optimizer, model, self.args.embedding_learning_rate)
        return optimizer

    # --- a step ---------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Takes the micro-batches of a step, asks the teacher, and counts over all of them.

        The counts (over micro-batches and ranks) are known before the first backward pass, so
        every loss is divided once and by the same number, however the step is cut.
        """
        batches: list[PairBatch] = []
        for batch in epoch_iterator:
            batches.append(self._prepare_inputs(batch))
            if len(batches) == num_batches:
                break
        signals = [self.teachers.signals(batch) for batch in batches]
        counts = self._global_counts(batches, signals)
        self._step_rows.rows = [row for batch in batches for row in batch["row_index"].tolist()]
        for batch in batches:
            meters.add_batch(self._since_log, batch)
            meters.add_batch(self._run, batch)
        samples = [
            {"batch": batch, "signals": signal, "counts": counts}
            for batch, signal in zip(batches, signals, strict=True)
        ]
        self.stepper.take(samples)
        return samples, torch.ones((), device=device) if samples else None

    def _global_counts(
        self, batches: list[PairBatch], signals: list[dict[str, Signal]]
    ) -> dict[str, Tensor]:
        names = list(self.mix.objectives)
        total = torch.zeros(len(names), dtype=torch.float64, device=self.args.device)
        for batch, signal in zip(batches, signals, strict=True):
            counts = self.mix.counts(batch, signal)
            total += torch.stack([counts[name].double() for name in names])
        total = meters.reduced(total, self.accelerator).float()
        return dict(zip(names, total.unbind(), strict=True))

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """Takes a micro-batch's share of a step; the step is weighed before its first one."""
        if self.stepper.at_start:
            model.train()
            with self.compute_loss_context_manager():
                self.stepper.begin(self.state.global_step, self.state.max_steps)
        if self.stepper.projects:
            model.train()
            with self.compute_loss_context_manager():
                loss, done = self.stepper.project(inputs)
                total = self._looked_at(loss, done, inputs)
        else:
            total = super().training_step(model, inputs, num_items_in_batch)
        self.stepper.end_of_micro_batch()
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Computes a micro-batch's share of the step's loss; the shares add up to it.

        Raises:
            NumericsError: It is not finite.
        """
        done = self.student_step.forward(model, inputs["batch"])
        loss = self.student_step.loss(done, inputs, self.stepper.weights)
        self.stepper.note(loss, inputs["counts"])
        total = self._looked_at(loss, done, inputs)
        return (total, {}) if return_outputs else total

    def _looked_at(self, loss: MixLoss, done: Forward, inputs: Mapping[str, Any]) -> Tensor:
        """The loss as this rank gives it, once it has been checked and added to the metrics."""
        self._add(self._since_log, loss, done, inputs["batch"], measure=self._logs_this_step())
        check_loss(loss, inputs["batch"], self.state.global_step + 1, self.folder)
        # Data parallel wrappers average gradients over ranks; the counts are sums over them.
        return loss.total * self.accelerator.num_processes

    def _add(
        self, sums: meters.Sums, loss: MixLoss, done: Forward, batch: PairBatch, *, measure: bool
    ) -> None:
        meters.add_loss(sums, loss)
        if measure:
            self.student_step.add_bits(sums, done, batch)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clips the student and what objectives learn together, and a balance by itself."""
        return self.learnable.clip(model, self.args.max_grad_norm, self.accelerator)

    def _logs_this_step(self) -> bool:
        step, every = self.state.global_step + 1, self.state.logging_steps
        if self.args.logging_strategy != "steps" or not every:
            return False
        return step % int(every) == 0 or (self.args.logging_first_step and step == 1)

    # --- what is said ---------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the objectives and the data say to a training log line."""
        if "loss" in logs:
            step = self._since_log.total(self.accelerator)
            weights = {f"weight/{name}": float(w) for name, w in self.stepper.weights.items()}
            logs = {**logs, **meters.report(step, self._run.total(self.accelerator)), **weights}
            self._since_log.clear()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Computes the objectives on held-out rows: sums over all of them, divided once.

        Returns:
            `eval_loss`, `eval_loss/NAME`, `eval_supervised_bits_per_byte` and
            `eval_aligned_byte_fraction`.
        """
        dataset = self.eval_dataset if eval_dataset is None else _each(eval_dataset, numbered)
        if isinstance(dataset, dict):
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return found
        with kept_randomness():
            sums = self._evaluation_sums(dataset)
        weights = {name: weight for name, (_, weight) in self.mix.objectives.items()}
        metrics = meters.evaluated(sums.total(self.accelerator), weights, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _evaluation_sums(self, dataset: Any) -> meters.Sums:
        sums = meters.Sums()
        model = cast(nn.Module, self.model_wrapped)
        was_training = model.training
        model.eval()
        for raw in self.get_eval_dataloader(dataset):
            batch = self._prepare_inputs(raw)
            signals = self.teachers.signals(batch)
            counts = self.mix.counts(batch, signals)
            done = self.student_step.forward(model, batch)
            inputs = {"batch": batch, "signals": signals, "counts": counts}
            self._add(sums, self.student_step.loss(done, inputs), done, batch, measure=True)
            meters.add_batch(sums, batch)
        model.train(was_training)
        return sums

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimates the student's operations: six per weight and token, the head included."""
        tokens = inputs["batch"]["student_input_ids"].numel() if "batch" in inputs else 0
        model = self.model
        return 6 * tokens * model.num_parameters() if isinstance(model, PreTrainedModel) else 0

    # --- what the run is made of ----------------------------------------------------------------

    def origin(self) -> Origin:
        """Fingerprints of settings, data, tokenizers and teacher; made once."""
        if self._origin is None:
            self._origin = Origin(
                config=self.args.resolved(),
                data=data_fingerprint(self._train_data),
                student_tokenizer=tokenizer_fingerprint(self.student_encoder.tokenizer),
                teacher_tokenizer=tokenizer_fingerprint(self.teacher_encoder.tokenizer),
                teacher=model_fingerprint(self.teacher.model),
                same_tokenizer_teacher=self.teachers.fingerprint(SAME),
                world_size=self.accelerator.num_processes,
            )
        return self._origin

    def progress(self) -> dict[str, float]:
        """Sums over the run: rows, tokens, bytes and skipped rows."""
        return self._run.total(self.accelerator)

    def set_progress(self, sums: dict[str, float]) -> None:
        """Goes on with saved sums, which are those of all ranks."""
        self._run.clear()
        share = 1.0 if self.accelerator.is_main_process else 0.0
        for name, value in sums.items():
            self._run.add(name, value * share)


def _each(value: Any, function: Any) -> Any:
    """Applies a function to a data set, or to each of several by name."""
    if isinstance(value, dict):
        return {name: function(part) for name, part in value.items()}
    return None if value is None else function(value)
