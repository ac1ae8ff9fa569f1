"""Which weights of a student are trained when it moves to another tokenizer."""

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, set_seed

from crosstill.errors import ConfigError
from crosstill.heads import under_adapters
from crosstill.training.adapters import is_adapted, lora_config
from crosstill.transfer.enriched import EnrichedModel

if TYPE_CHECKING:
    from peft import PeftModel

MODES = {
    "embeddings": "the input embedding and the head; the body is frozen",
    "lora": "the same, and an adapter on every linear layer of the body",
    "body": "everything but the input embedding and the head",
    "full": "everything",
}
"""The modes, and what each trains."""

LORA: Mapping[str, Any] = {"r": 64, "lora_alpha": 64, "target_modules": "all-linear"}
"""Settings of the adapter where none are given: those of arXiv:2503.20083, appendix B."""


def shares_body(mode: str) -> bool:
    """Whether a mode leaves the body's weights as they are, so that a teacher can share them.

    Raises:
        ConfigError: There is no such mode.

    Example:
        >>> [shares_body(mode) for mode in ("embeddings", "lora", "body", "full")]
        [True, True, False, False]
    """
    return _known(mode) in ("embeddings", "lora")


def prepare_mode(
    model: "PreTrainedModel | PeftModel",
    mode: str,
    *,
    peft: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> "PreTrainedModel | PeftModel":
    """Sets which weights of a student are trained, and puts an adapter on it where one is needed.

    Call it on the transplanted model, at the start and again for each later stage, and give what
    it returns to `DistillTrainer` as `model` (without `peft_config`). The teacher is made before
    the transplant, by `crosstill.transfer.self_teacher.self_teacher`.

    The original embeddings of an enriched byte model stay frozen in every mode.

    In lora mode the new tables are trained as they are: they get a gradient after the adapter was
    put on, and no second copy, which `modules_to_save` would keep. They are saved with the adapter
    (`crosstill.training.adapters.save_weights`), and `merge_and_unload` leaves them in place.

    Args:
        model: The student. One that has an adapter already keeps it: in lora mode it goes on being
            trained, in embeddings mode it is frozen, and the other modes merge it first.
        mode: One of `MODES`.
        peft: Settings of `peft.LoraConfig`, in place of or beside those of `LORA`; for lora mode.
        seed: Of the adapter's first numbers.

    Returns:
        The model to train: the same object, a PEFT model round it, or what is under one.

    Raises:
        ConfigError: There is no such mode, peft is not installed, or its settings are wrong.

    Source: arXiv:2503.20083, appendix B (rank and alpha 64 on all projections).

    Example:
        ```python
        teacher = self_teacher(model, tokenizer, ["embeddings", "lora"])
        transplant(model, tokenizer, target)
        student = prepare_mode(model, "embeddings")
        ...  # train
        student = prepare_mode(student, "lora", peft={"r": 16, "lora_alpha": 16})
        ```
    """
    trains_body = not shares_body(mode)
    student: Any = model
    if is_adapted(student):
        student = _with_own_adapter(student, mode)
    elif mode == "lora":
        student = _with_adapter(student, {**LORA, **(peft or {})}, seed)
    else:
        _set_trained(student, trains_body)
    for table in tables(student):
        _set_trained(table, mode != "body")
    base = under_adapters(student)
    if isinstance(base, EnrichedModel):
        _set_trained(base.subwords, False)
    return student


def tables(model: nn.Module) -> list[nn.Module]:
    """The modules at a model's two ends: its input embedding and its head.

    Raises:
        ConfigError: It has none.
    """
    base = under_adapters(model)
    if not isinstance(base, PreTrainedModel):
        raise ConfigError(f"the student is a {type(base).__name__}, expected a transformers model")
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    found = [end for end in ends if isinstance(end, nn.Module)]
    if len(found) != len(ends):
        raise ConfigError(f"{type(base).__name__} names no input embedding or no head")
    return found


def _with_adapter(model: PreTrainedModel, settings: Mapping[str, Any], seed: int) -> "PeftModel":
    config = lora_config(settings)
    from peft import get_peft_model

    set_seed(seed)  # an adapter begins with random numbers
    return get_peft_model(model, config)  # type: ignore[return-value]  # no mixed adapters here


def _with_own_adapter(model: "PeftModel", mode: str) -> "PreTrainedModel | PeftModel":
    if shares_body(mode):
        _set_trained(model, False)
        if mode == "lora":
            model.set_adapter(model.active_adapters[0])  # makes its weights trainable again
        return model
    merged: Any = model.merge_and_unload()
    _set_trained(merged, True)
    return merged


def _set_trained(module: nn.Module, trained: bool) -> None:
    for weight in module.parameters():
        if weight.is_floating_point():  # a quantised weight cannot have a gradient
            weight.requires_grad_(trained)


def _known(mode: str) -> str:
    if mode in MODES:
        return mode
    near = difflib.get_close_matches(mode, MODES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"mode is {mode!r}, expected {' | '.join(MODES)}.{hint}")
