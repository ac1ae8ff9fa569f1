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

from crosstill.data.collate import PairCollator
from crosstill.errors import ConfigError
from crosstill.functional.fused import head_logprobs
from crosstill.functional.losses import supervised_tokens
from crosstill.functional.scores import token_logprobs
from crosstill.heads import HeadSplit, split_head
from crosstill.objectives import MixLoss, PairBatch, Signal, StudentStates, create_mix
from crosstill.pair import known_ids, model_pair
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.signal import TokenSignal
from crosstill.text.encode import TextEncoder
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
from crosstill.training.rows import numbered
from crosstill.training.saving import SavingTrainer
from crosstill.training.setup import adapted, resolve_student, resolve_teacher

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)


class DistillTrainer(SavingTrainer):
    """Trains a student to give its teacher's probabilities, whatever their tokenizers.

    Args:
        model: The student: a model, or a folder or hub name.
        teacher_model: The teacher: a model, or a folder or hub name. It is never changed.
        args: The settings.
        train_dataset: Rows with `text`, `messages`, or `prompt` and `completion`.
        eval_dataset: Rows, or several sets of them by name.
        processing_class: The student's tokenizer; needed where the student is no name.
        teacher_processing_class: The teacher's tokenizer; needed where the teacher is no name.
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
        teacher_model: PreTrainedModel | str,
        args: DistillConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerFast | None = None,
        teacher_processing_class: PreTrainedTokenizerFast | None = None,
        peft_config: "PeftConfig | None" = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
    ) -> None:
        if not isinstance(args, DistillConfig):
            raise ConfigError(f"args is a {type(args).__name__}, expected a DistillConfig")
        if model is teacher_model and isinstance(model, PreTrainedModel):
            raise ConfigError("student and teacher are one object: the teacher must not change")
        student, self.student_encoder = resolve_student(model, processing_class, args)
        teacher, teacher_encoder = resolve_teacher(teacher_model, teacher_processing_class, args)
        self.teacher_encoder = teacher_encoder
        self.teacher = LocalTeacher(teacher, teacher_encoder)
        vocab_size = known_ids("student", student, self.student_encoder)
        self.mix = create_mix(
            args.objectives,  # type: ignore[arg-type]  # a dict once resolved
            boundary_mask=torch.from_numpy(self.student_encoder.bytes.boundary())[:vocab_size],
            vocab_size=vocab_size,
        )
        self._spelled = torch.from_numpy(self.student_encoder.bytes.lengths).long()
        self._step_rows = StepRows([])
        self._since_log, self._run = meters.Sums(), meters.Sums()
        self._train_data = train_dataset
        self._origin: Origin | None = None
        super().__init__(
            model=adapted(student, peft_config, args),
            args=args,
            data_collator=self._collator(args),
            train_dataset=numbered(train_dataset),
            eval_dataset=_each(eval_dataset, numbered),
            processing_class=self.student_encoder.tokenizer,
            callbacks=[
                *(callbacks or []),
                GradientGuard(self._step_rows),
                MetricsFile(args.folder),
            ],
            optimizers=optimizers,  # type: ignore[arg-type]  # an optimizer may stand alone
        )
        self.model_accepts_loss_kwargs = True  # as loss_is_scaled_for_ga, for older versions
        self._replace_progress()
        self.teacher.to(self.args.device)
        split = split_head(cast(nn.Module, self.model))
        self.head = self._choose_head(split)
        self._split = self._needed_split(split)
        self.mix.prepare(
            model_pair(
                cast(nn.Module, self.model), self.student_encoder, teacher, self.teacher_encoder
            )
        )

    # --- setting up -----------------------------------------------------------------------------

    def _collator(self, args: DistillConfig) -> PairCollator:
        return PairCollator(
            self.student_encoder,
            self.teacher_encoder,
            max_length=args.max_length,
            pad_to_multiple_of=args.pad_to_multiple_of,
            loss_on=args.loss_on,  # type: ignore[arg-type]  # checked by the config
            chat_template_kwargs=args.chat_template_kwargs or None,
            teacher_chat_template_kwargs=args.teacher_chat_template_kwargs or None,
        )

    def _replace_progress(self) -> None:
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if not self.args.disable_tqdm:
            self.add_callback(Progress())

    def _choose_head(self, split: HeadSplit | str) -> HeadSplit | None:
        """The student's head, or None where the plain form is used; says why once."""
        if self.args.fused_head is False:
            return None
        if not self.mix.can_fuse:
            reason = f"the objectives {', '.join(self.mix.objectives)} have no fused form"
        elif isinstance(split, HeadSplit):
            return split
        else:
            reason = split
        if self.args.fused_head is True:
            raise ConfigError(f"fused_head is true, but {reason}. Set fused_head: auto")
        logger.warning("the student's logits are made as a whole, not block by block: %s", reason)
        return None

    def _needed_split(self, split: HeadSplit | str) -> HeadSplit | None:
        """The student's head where an objective reads hidden states: they are taken before it."""
        if not self.mix.keeps_hidden:
            return None
        if isinstance(split, HeadSplit):
            return split
        raise ConfigError(f"an objective reads the student's hidden states, but {split}")

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
        signals = [self._signal(batch) for batch in batches]
        counts = self._global_counts(batches, signals)
        self._step_rows.rows = [row for batch in batches for row in batch["row_index"].tolist()]
        for batch in batches:
            meters.add_batch(self._since_log, batch)
            meters.add_batch(self._run, batch)
        samples = [
            {"batch": batch, "signal": signal, "counts": counts}
            for batch, signal in zip(batches, signals, strict=True)
        ]
        return samples, torch.ones((), device=device) if samples else None

    def _signal(self, batch: PairBatch) -> Signal:
        if self.mix.needs:
            return self.teacher(batch, self.mix.teacher_layers())
        nothing = torch.zeros(batch["teacher_input_ids"].shape, device=self.args.device)
        return TokenSignal(nothing, nothing)

    def _global_counts(
        self, batches: list[PairBatch], signals: list[Signal]
    ) -> dict[str, Tensor]:
        names = list(self.mix.objectives)
        total = torch.zeros(len(names), dtype=torch.float64, device=self.args.device)
        for batch, signal in zip(batches, signals, strict=True):
            counts = self.mix.counts(batch, signal)
            total += torch.stack([counts[name].double() for name in names])
        total = meters.reduced(total, self.accelerator).float()
        return dict(zip(names, total.unbind(), strict=True))

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
        loss = self._mix_loss(model, inputs, self._since_log, measure=self._logs_this_step())
        check_loss(loss, inputs["batch"], self.state.global_step + 1, self.folder)
        # Data parallel wrappers average gradients over ranks; the counts are sums over them.
        total = loss.total * self.accelerator.num_processes
        return (total, {}) if return_outputs else total

    def _mix_loss(
        self, model: nn.Module, inputs: Mapping[str, Any], sums: meters.Sums, *, measure: bool
    ) -> MixLoss:
        batch, signal, counts = inputs["batch"], inputs["signal"], inputs["counts"]
        ids, mask = batch["student_input_ids"], batch["student_attention_mask"]
        if self.head is not None:
            hidden = self.head.hidden(model, ids, mask)
            loss = self.mix.from_hidden(hidden, self.head, batch, signal, counts)
            scores = self._scores(self.head, hidden.detach(), batch) if measure else None
        else:
            logits, states = self._plain(model, ids, mask)
            loss = self.mix.from_logits(logits, batch, signal, counts, states=states)
            plain = logits.detach() if measure else None
            vocab_size = self.mix.vocab_size
            scores = None if plain is None else token_logprobs(plain, ids, vocab_size=vocab_size)
        meters.add_loss(sums, loss)
        if scores is not None:
            self._add_bits(sums, scores, batch)
        return loss

    def _plain(
        self, model: nn.Module, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, StudentStates | None]:
        """The student's logits as a whole, and its hidden states where they are read."""
        if self._split is None:
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits, None
        hidden, layers = self._split.states(model, ids, mask, self.mix.student_layers)
        return self._split.logits(hidden), StudentStates(hidden, layers)

    def _scores(self, head: HeadSplit, hidden: Tensor, batch: PairBatch) -> Tensor:
        supervised = supervised_tokens(batch["student_labels"])
        before = torch.nn.functional.pad(supervised[:, 1:], (0, 1))  # row t predicts t + 1
        return head_logprobs(
            hidden,
            head.weight,
            batch["student_input_ids"],
            None,
            bias=head.bias,
            logit_scale=head.logit_scale,
            softcap=head.softcap,
            vocab_size=self.mix.vocab_size,
            needed=before,
        )[0]

    def _add_bits(self, sums: meters.Sums, scores: Tensor, batch: PairBatch) -> None:
        labels = batch["student_labels"]
        supervised = supervised_tokens(labels)
        # Special tokens are supervised too, and spell nothing: bits per byte leaves them out.
        spelled = supervised & (self._spelled.to(labels.device)[labels.clamp(min=0)] > 0)
        sums.add("measured_nats", -scores.masked_fill(~spelled, 0.0).sum())
        sums.add("measured_bytes", meters.supervised_bytes(labels, self._spelled, spelled))

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
            logs = {**logs, **meters.report(step, self._run.total(self.accelerator))}
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
        metrics = self._evaluated(sums.total(self.accelerator), metric_key_prefix)
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
            signal = self._signal(batch)
            inputs = {"batch": batch, "signal": signal, "counts": self.mix.counts(batch, signal)}
            self._mix_loss(model, inputs, sums, measure=True)
            meters.add_batch(sums, batch)
        model.train(was_training)
        return sums

    def _evaluated(self, sums: dict[str, float], prefix: str) -> dict[str, float]:
        line, loss = {}, 0.0
        for name, (_, weight) in self.mix.objectives.items():
            mean = sums.get(f"value/{name}", 0.0) / max(sums.get(f"count/{name}", 0.0), 1.0)
            line[f"{prefix}_loss/{name}"] = mean
            loss += weight * mean
        shares = meters.bits_and_share(sums)
        if "bits_per_byte" in shares:
            shares["supervised_bits_per_byte"] = shares.pop("bits_per_byte")
        return {f"{prefix}_loss": loss, **line} | {f"{prefix}_{k}": v for k, v in shares.items()}

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
                student_tokenizer=tokenizer_fingerprint(_tokenizer(self.student_encoder)),
                teacher_tokenizer=tokenizer_fingerprint(_tokenizer(self.teacher_encoder)),
                teacher=model_fingerprint(self.teacher.model),
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


def _tokenizer(encoder: TextEncoder) -> PreTrainedTokenizerFast:
    return encoder.tokenizer
