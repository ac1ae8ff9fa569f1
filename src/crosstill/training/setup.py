"""Models and tokenizers as the trainer needs them, from names or from objects."""

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, set_seed

from crosstill.data.collate import PairCollator
from crosstill.errors import ConfigError
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import Mix, create_mix
from crosstill.objectives.views import MAIN, SAME
from crosstill.pair import known_ids
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import TextEncoder, budgets, text_encoder
from crosstill.training.config import DistillConfig
from crosstill.training.learnable import Learnable
from crosstill.training.teaching import check_same_tokenizer
from crosstill.transfer.self_teacher import SharedBodyTeacher

if TYPE_CHECKING:
    from peft import PeftConfig

Tokenizer = PreTrainedTokenizerFast | TextEncoder
Teacher = LocalTeacher | PreTrainedModel | str


def resolve_student(
    model: PreTrainedModel | str, tokenizer: Tokenizer | None, args: DistillConfig
) -> tuple[PreTrainedModel, TextEncoder]:
    """Loads the student where it is a name, and its tokenizer where none is given.

    Raises:
        ConfigError: A model without a tokenizer.
    """
    load = (args.student_dtype, args.student_revision)
    return _resolve("student", model, tokenizer, "processing_class", *load)


def resolve_teachers(
    main: tuple[Teacher, Tokenizer | None],
    same: tuple[Teacher | None, Tokenizer | None],
    student: nn.Module,
    encoder: TextEncoder,
    args: DistillConfig,
) -> dict[str, LocalTeacher]:
    """Makes the teachers of a run, by the name that objectives give under `teacher`.

    Args:
        main: The teacher and its tokenizer.
        same: The teacher with the student's tokenizer, or None, and its tokenizer.
        student: The student; no teacher may share a weight that it trains.
        encoder: The student's encoder.
        args: The settings.

    Raises:
        ConfigError: A teacher without a tokenizer or with a wrong one, or one that training the
            student would change.
    """
    for teacher in (main[0], same[0]):
        _check_apart(student, teacher)
    found = {MAIN: resolve_teacher(*main, args)}
    if same[0] is not None:
        found[SAME] = resolve_same(same[0], same[1], encoder, args)
    return found


def resolve_teacher(
    model: Teacher, tokenizer: Tokenizer | None, args: DistillConfig
) -> LocalTeacher:
    """Makes the teacher; loads it where it is a name, and its tokenizer where none is given.

    Args:
        model: A model, or its folder or hub name; a teacher that is made already stays as it is.
        tokenizer: Its tokenizer, where it does not come with one.
        args: The settings.

    Raises:
        ConfigError: A model without a tokenizer or a teacher with two, or a shared body that has
            changed.
    """
    if isinstance(model, SharedBodyTeacher):
        model.check()
    if isinstance(model, LocalTeacher):
        if tokenizer is not None:
            raise ConfigError(
                "teacher_processing_class is given, but this teacher was made with its tokenizer: "
                "leave it out"
            )
        return model
    load = (args.teacher_dtype, args.teacher_revision)
    return LocalTeacher(*_resolve("teacher", model, tokenizer, "teacher_processing_class", *load))


def resolve_same(
    model: Teacher, tokenizer: Tokenizer | None, student: TextEncoder, args: DistillConfig
) -> LocalTeacher:
    """Makes the teacher that has the student's tokenizer; loads it where it is a name.

    Args:
        model: As for `resolve_teacher`.
        tokenizer: Its tokenizer; where a model comes without one, it is taken at its word.
        student: The student's encoder.
        args: The settings.

    Raises:
        ConfigError: Its tokenizer is not the student's.
    """
    if isinstance(model, LocalTeacher):
        check_same_tokenizer(student, model.encoder)
        return model
    revision = args.same_tokenizer_teacher_revision
    if isinstance(model, str):
        tokenizer = tokenizer or load_tokenizer(model, revision=revision)
    if tokenizer is not None:
        check_same_tokenizer(student, text_encoder(tokenizer))
    if isinstance(model, str):
        model = load_model(model, dtype=args.teacher_dtype, revision=revision)
    return LocalTeacher(model, student)


def _check_apart(student: nn.Module, teacher: Teacher | None) -> None:
    """Refuses a teacher that is the student, or that has a weight which the student trains."""
    model = teacher.model if isinstance(teacher, LocalTeacher) else teacher
    if student is model:
        raise ConfigError("student and teacher are one object: the teacher must not change")
    if not isinstance(model, nn.Module):
        return
    theirs = {id(weight) for weight in model.parameters()}
    for name, weight in student.named_parameters():
        if weight.requires_grad and id(weight) in theirs:
            raise ConfigError(
                f"the student trains {name}, which is a weight of the teacher too: the teacher "
                f"must not change. Freeze it (as modes embeddings and lora do), or give the "
                f"teacher weights of its own"
            )


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


def pair_collator(student: TextEncoder, teacher: TextEncoder, args: DistillConfig) -> PairCollator:
    """Makes the collator of a run from its settings."""
    return PairCollator(
        student,
        teacher,
        max_length=budgets(student, teacher, args.max_length),
        pad_to_multiple_of=args.pad_to_multiple_of,
        loss_on=args.loss_on,  # type: ignore[arg-type]  # checked by the config
        chat_template_kwargs=args.chat_template_kwargs or None,
        teacher_chat_template_kwargs=args.teacher_chat_template_kwargs or None,
    )


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
