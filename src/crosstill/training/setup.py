"""Models and tokenizers as the trainer needs them, from names or from objects."""

from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from crosstill.errors import ConfigError
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import Mix, create_mix
from crosstill.pair import known_ids
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.training.config import DistillConfig
from crosstill.training.learnable import Learnable
from crosstill.training.teaching import check_same_tokenizer

if TYPE_CHECKING:
    from peft import PeftConfig

Tokenizer = PreTrainedTokenizerFast | TextEncoder


def resolve_student(
    model: PreTrainedModel | str, tokenizer: Tokenizer | None, args: DistillConfig
) -> tuple[PreTrainedModel, TextEncoder]:
    """Loads the student where it is a name, and its tokenizer where none is given.

    Raises:
        ConfigError: A model without a tokenizer.
    """
    load = (args.student_dtype, args.student_revision)
    return _resolve("student", model, tokenizer, "processing_class", *load)


def resolve_teacher(
    model: PreTrainedModel | str, tokenizer: Tokenizer | None, args: DistillConfig
) -> tuple[PreTrainedModel, TextEncoder]:
    """Loads the teacher where it is a name, and its tokenizer where none is given.

    Raises:
        ConfigError: A model without a tokenizer.
    """
    load = (args.teacher_dtype, args.teacher_revision)
    return _resolve("teacher", model, tokenizer, "teacher_processing_class", *load)


def resolve_same(
    model: PreTrainedModel | str,
    tokenizer: Tokenizer | None,
    student: TextEncoder,
    args: DistillConfig,
) -> tuple[LocalTeacher, TextEncoder]:
    """Makes the teacher that has the student's tokenizer; loads it where it is a name.

    Args:
        model: The teacher, or its folder or hub name.
        tokenizer: Its tokenizer; where a model comes without one, it is taken at its word.
        student: The student's encoder.
        args: The settings.

    Raises:
        ConfigError: Its tokenizer is not the student's.
    """
    revision = args.same_tokenizer_teacher_revision
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model, revision=revision)
    if tokenizer is not None:
        check_same_tokenizer(student, text_encoder(tokenizer))
    if isinstance(model, str):
        model = load_model(model, dtype=args.teacher_dtype, revision=revision)
    return LocalTeacher(model, student), student


def _resolve(
    side: str,
    model: PreTrainedModel | str,
    tokenizer: Tokenizer | None,
    argument: str,
    dtype: str,
    revision: str | None,
) -> tuple[PreTrainedModel, TextEncoder]:
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model, revision=revision)
        model = load_model(model, dtype=dtype, revision=revision)
    if tokenizer is None:
        raise ConfigError(f"the {side} is a model, so give its tokenizer too: {argument}")
    return model, text_encoder(tokenizer)


def student_mix(student: PreTrainedModel, encoder: TextEncoder, args: DistillConfig) -> Mix:
    """Makes the objectives of a run, with what only the student's tokenizer knows.

    Raises:
        ConfigError: Model and tokenizer do not belong together.
    """
    vocab_size = known_ids("student", student, encoder)
    return create_mix(
        args.objectives,  # type: ignore[arg-type]  # a dict once resolved
        boundary_mask=torch.from_numpy(encoder.bytes.boundary())[:vocab_size],
        vocab_size=vocab_size,
    )


def check_optimizers(learnable: Learnable, scheduler: LRScheduler | None) -> None:
    """Refuses a scheduler made before the objectives' own parts had a group in its optimizer.

    Raises:
        ConfigError: There are such parts and such a scheduler.
    """
    if learnable.parameters() and scheduler is not None:
        raise ConfigError(
            "a scheduler of your own knows only the optimizer's groups of today, and the "
            "objectives have parts that are trained too: pass optimizers=(optimizer, None)"
        )


def adapted(
    model: PreTrainedModel, peft_config: "PeftConfig | None", args: DistillConfig
) -> PreTrainedModel:
    """Puts an adapter on the student where one is asked for.

    Raises:
        ConfigError: No weight would be trained, or peft is not installed.
    """
    if peft_config is not None:
        try:
            from peft import get_peft_model
        except ImportError as error:
            raise ConfigError(
                "peft_config needs the extra: pip install 'crosstill[peft]'"
            ) from error
        set_seed(args.seed)  # an adapter begins with random numbers
        if args.gradient_checkpointing:  # one name in all versions of transformers
            model.enable_input_require_grads()
        model = get_peft_model(model, peft_config)  # type: ignore[assignment]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every weight of the student is frozen: nothing to train")
    return model
