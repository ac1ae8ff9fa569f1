"""The settings of a distillation run: those of transformers, with a few of our own."""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from crosstill.errors import ConfigError
from crosstill.training.asked import (
    parse_objectives,
    wrong_numbers,
    wrong_objectives,
    wrong_rate,
    wrong_weighting,
)
from crosstill.training.values import as_dict, at_least, unknown_key, wrong_type

logger = logging.getLogger(__name__)

LOSS_ON = ("completion", "assistant", "all")
DTYPES = ("auto", "float32", "bfloat16", "float16")

_LEAST = {
    "max_length": (2, " tokens"),
    "pad_to_multiple_of": (1, " token"),
    "divergence_steps": (0, ""),
    "divergence_samples": (1, ""),
    "divergence_tokens": (1, ""),
}

# Settings that change where a run writes and how much it says, but none of its steps.
_HARMLESS = {
    "output_dir",
    "run_name",
    "project",
    "report_to",
    "disable_tqdm",
    "logging_strategy",
    "logging_steps",
    "logging_first_step",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "eval_strategy",
    "eval_steps",
    "eval_on_start",
    "eval_delay",
    "per_device_eval_batch_size",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_pin_memory",
    "dataloader_multiprocessing_context",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
    "hub_strategy",
    "hub_token",
    "hub_private_repo",
    "hub_always_push",
    "hub_revision",
    "skip_memory_metrics",
    "do_train",
    "do_eval",
    "do_predict",
    "divergence_steps",
    "divergence_samples",
    "divergence_tokens",
}


def _help(text: str) -> dict[str, str]:
    """What the command line and the documentation show for a field."""
    return {"help": text}


@dataclass
class DistillConfig(TrainingArguments):
    """Settings of `DistillTrainer`: every field of `TrainingArguments`, and these.

    Each field's help says what it does and its unit. Settings that would make a run other than it
    says it is (`auto_find_batch_size`, `fp16` loss scaling, filtered losses) are refused.

    Attributes:
        objectives: What is minimised: a name (`"alm"`), names joined by `+` (`"alm+sft"`, weight 1
            each), or `{name: {"weight": w, option: value, ...}}`. A weight may be a schedule:
            `{"schedule": "linear", "start": 0, "end": 1, "over": 0.5}`. `"teacher": "same"` lets
            an objective read the teacher that has the student's tokenizer.
        weighting: How objectives are weighed against each other beyond their weights: fixed,
            gradmag, gradnorm, pcgrad or uncertainty.
        gradnorm_alpha: With gradnorm: how strongly objectives that learn slower are favoured.
        parts_learning_rate: Peak learning rate of what objectives and weightings learn
            themselves; None: that of the run.
        embedding_learning_rate: Peak learning rate of the student's input and output embeddings;
            None: that of the run. New embeddings of a transplanted tokenizer bear a higher one.
        loss_on: Which bytes are supervised: those of completions, of assistants, or all.
        max_length: Longest row, in tokens of either side; longer rows are cut at a shared chunk. A
            side that reads bytes may have four times as many, so that it sees as much of a text.
        pad_to_multiple_of: Batches are padded to a multiple of so many tokens. Few shapes keep the
            memory of a CPU from fragmenting, and suit kernels.
        fused_head: Never make the `T x V` logits: True, False, or "auto" (where the model allows).
        compile_blocks: Compile the transformer blocks of all models (`torch.compile`, one block's
            code for all): the first step takes a minute longer, the others down to half as long. In
            a transfer also those that an initialiser trains.
        student_dtype: Type of the student's weights in memory, when it is loaded by name.
        teacher_dtype: Type of the teacher's weights in memory, when it is loaded by name.
        student_revision: Commit or branch of the student on the hub.
        teacher_revision: Commit or branch of the teacher on the hub.
        same_tokenizer_teacher_revision: The same for the teacher with the student's tokenizer.
        chat_template_kwargs: Passed to the student's chat template.
        teacher_chat_template_kwargs: Passed to the teacher's chat template.
        divergence_steps: Measure the teacher divergence every so many steps; 0: only before and
            after.
        divergence_samples: Texts sampled from the teacher for each kind of prompt.
        divergence_tokens: Longest sample, in tokens of the teacher.

    Example:
        >>> DistillConfig(output_dir="runs/one", objectives="alm+sft", use_cpu=True).objectives
        {'alm': {'weight': 1.0}, 'sft': {'weight': 1.0}}
    """

    objectives: dict[str, dict[str, Any]] | str = field(
        default="alm",
        metadata=_help(
            "what is minimised: a name, names joined by +, or {name: {weight: w, option: value}}"
        ),
    )
    weighting: str = field(
        default="fixed",
        metadata=_help("balance of objectives: fixed | gradmag | gradnorm | pcgrad | uncertainty"),
    )
    gradnorm_alpha: float = field(
        default=0.12, metadata=_help("gradnorm: how strongly slower objectives are favoured")
    )
    parts_learning_rate: float | None = field(
        default=None,
        metadata=_help("learning rate of objectives' own parts; unset: that of the run"),
    )
    embedding_learning_rate: float | None = field(
        default=None,
        metadata=_help("learning rate of the student's embeddings; unset: that of the run"),
    )
    loss_on: str = field(
        default="completion", metadata=_help("supervised bytes: completion | assistant | all")
    )
    max_length: int = field(
        default=1024,
        metadata=_help("longest row, in tokens of either side; a byte is a quarter of one"),
    )
    pad_to_multiple_of: int = field(
        default=1, metadata=_help("pad batches to a multiple of so many tokens")
    )
    fused_head: bool | str = field(
        default="auto",
        metadata=_help(
            "never make the T x V logits: true | false | auto (where the model allows it)"
        ),
    )
    compile_blocks: bool = field(
        default=False,
        metadata=_help("compile the models' blocks: a slow first step, then up to twice as fast"),
    )
    student_dtype: str = field(
        default="float32",
        metadata=_help("type of the student's weights: auto | float32 | bfloat16"),
    )
    teacher_dtype: str = field(
        default="auto",
        metadata=_help(
            "type of the teacher's weights: auto (as stored) | float32 | bfloat16 | float16"
        ),
    )
    student_revision: str | None = field(
        default=None, metadata=_help("commit or branch of the student on the hub")
    )
    teacher_revision: str | None = field(
        default=None, metadata=_help("commit or branch of the teacher on the hub")
    )
    same_tokenizer_teacher_revision: str | None = field(
        default=None,
        metadata=_help("commit or branch of the teacher with the student's tokenizer on the hub"),
    )
    chat_template_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata=_help("passed to the student's chat template")
    )
    teacher_chat_template_kwargs: dict[str, Any] = field(
        default_factory=dict, metadata=_help("passed to the teacher's chat template")
    )
    divergence_steps: int = field(
        default=0,
        metadata=_help(
            "measure the teacher divergence every so many steps; 0: before and after only"
        ),
    )
    divergence_samples: int = field(
        default=8, metadata=_help("texts sampled from the teacher per kind of prompt")
    )
    divergence_tokens: int = field(
        default=128, metadata=_help("longest sample, in tokens of the teacher")
    )

    # Other defaults than transformers': each for a reason that the name below states.
    learning_rate: float = field(default=2e-5, metadata=_help("peak learning rate, per step"))
    lr_scheduler_type: str = field(
        default="cosine", metadata=_help("shape of the learning rate over the run")
    )
    warmup_steps: float = field(
        default=0.05, metadata=_help("warm-up: steps, or below 1 the share of all steps")
    )
    logging_steps: float = field(default=10, metadata=_help("write metrics every so many steps"))
    save_total_limit: int | None = field(default=2, metadata=_help("whole checkpoints to keep"))
    bf16: bool | None = field(
        default=None,
        metadata=_help("bfloat16 arithmetic over float32 weights; unset: where the GPU has it"),
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata=_help("always false: a log that hides NaN lies")
    )
    remove_unused_columns: bool = field(
        default=False, metadata=_help("always false: rows are read by the collator")
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False,
        metadata=_help(
            "false: the fused head's gradients reach the weights outside the wrapped forward"
        ),
    )

    def __post_init__(self) -> None:
        """Resolves and checks all settings.

        Raises:
            ConfigError: Lists every setting that is wrong, not only the first.
        """
        if self.bf16 is None:
            self.bf16 = (
                not self.use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            )
        self.objectives = parse_objectives(self.objectives)
        for name in ("chat_template_kwargs", "teacher_chat_template_kwargs"):
            setattr(self, name, as_dict(name, getattr(self, name)))
        if self.data_seed is None:
            self.data_seed = self.seed
        problems = self._problems()
        if problems:
            raise ConfigError("; ".join(problems))
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError(f"{error}") from error
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is nothing to pin it for, and PyTorch warns
        if self.n_gpu > 1:
            logger.warning(
                "%d GPUs are visible to one process and one is used; start with `torchrun "
                "--nproc_per_node=%d` to use them all",
                self.n_gpu,
                self.n_gpu,
            )
            self._n_gpu = 1

    def _problems(self) -> list[str]:
        """Says, one line each, which settings are wrong and what to set instead."""
        checks = {
            f"loss_on is {self.loss_on!r}: {' | '.join(LOSS_ON)}": self.loss_on not in LOSS_ON,
            f"fused_head is {self.fused_head!r}: true | false | auto": self.fused_head
            not in (True, False, "auto"),
            f"student_dtype is {self.student_dtype!r}: {' | '.join(DTYPES[:3])}": self.student_dtype
            not in DTYPES[:3],
            f"teacher_dtype is {self.teacher_dtype!r}: {' | '.join(DTYPES)}": self.teacher_dtype
            not in DTYPES,
            "auto_find_batch_size changes the batch, and so the run, unseen: set "
            "per_device_train_batch_size and gradient_accumulation_steps": (
                self.auto_find_batch_size
            ),
            "torch_compile compiles whole models, compile_blocks their blocks: set one of them": (
                self.compile_blocks and self.torch_compile
            ),
            "fp16 rescales losses and skips steps by itself: set bf16": bool(self.fp16),
            "fsdp and deepspeed write pickles and shard the head; they are not supported yet: "
            "leave them unset (several GPUs work through torchrun)": bool(
                self.fsdp or self.deepspeed
            ),
            "label_smoothing_factor does not apply to distillation: leave it at 0": (
                self.label_smoothing_factor != 0
            ),
            "logging_nan_inf_filter hides losses that are not finite: leave it false": (
                self.logging_nan_inf_filter
            ),
            "remove_unused_columns would remove the text: leave it false": (
                self.remove_unused_columns
            ),
            f"train_sampling_strategy is {self.train_sampling_strategy!r}: random | sequential": (
                self.train_sampling_strategy not in ("random", "sequential")
            ),
            "save_only_model saves what cannot be resumed: leave it false": self.save_only_model,
            "ignore_data_skip would train on some rows twice after a resume: leave it false": (
                self.ignore_data_skip
            ),
        }
        objectives = parse_objectives(self.objectives)
        return [
            *(line for line, wrong in checks.items() if wrong),
            *(
                f"{name} is {getattr(self, name)!r}: at least {least}{unit}"
                for name, (least, unit) in _LEAST.items()
                if not at_least(getattr(self, name), least)
            ),
            *wrong_objectives(objectives),
            *wrong_weighting(self.weighting, objectives),
            *wrong_numbers(self.gradnorm_alpha),
            *wrong_rate("parts_learning_rate", self.parts_learning_rate),
            *wrong_rate("embedding_learning_rate", self.embedding_learning_rate),
        ]

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(str(self.output_dir))

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "DistillConfig":
        """Makes a config of plain values; a key that is no setting is an error.

        Raises:
            ConfigError: Lists the unknown keys, each with the nearest setting, and wrong types.
        """
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        problems = [unknown_key("training", key, fields) for key in settings if key not in fields]
        problems += [
            f"training.{key} is {value!r}, expected {wanted}"
            for key, value in settings.items()
            if key in fields and (wanted := wrong_type(fields[key], value))
        ]
        if problems:
            raise ConfigError("; ".join(problems))
        return cls(**settings)

    def resolved(self) -> dict[str, Any]:
        """The settings that change a step, as plain JSON values; no token is among them."""
        fields = {f.name for f in dataclasses.fields(self) if f.init} - _HARMLESS
        plain = json.loads(json.dumps(self.to_dict(), default=str))
        return {name: plain[name] for name in sorted(fields) if name in plain}


def own_settings() -> tuple[str, ...]:
    """Names of the settings that `TrainingArguments` does not have."""
    theirs = {f.name for f in dataclasses.fields(TrainingArguments)}
    return tuple(f.name for f in dataclasses.fields(DistillConfig) if f.name not in theirs)
