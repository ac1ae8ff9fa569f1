"""Adapters: their settings, and saving them with the tables that are trained beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from crosstill.errors import ConfigError
from crosstill.heads import under_adapters
from crosstill.training.rates import embedding_weights

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel


def lora_config(settings: Mapping[str, Any]) -> "LoraConfig":
    """Makes the config of an adapter from a recipe's settings.

    Raises:
        ConfigError: peft is not installed, or a setting is not one of `peft.LoraConfig`.
    """
    if not is_peft_available():
        raise ConfigError("peft needs the extra: pip install 'crosstill[peft]'")
    from peft import LoraConfig

    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"peft: {error}; expected settings of peft.LoraConfig") from error


def is_adapted(model: object) -> bool:
    """Whether a model is one of peft's, with an adapter."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def save_weights(
    model: "PreTrainedModel | PeftModel",
    folder: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Saves a model, or its adapter together with the embeddings and the head if they are trained.

    peft alone saves tables only where it can see that the vocabulary has another size than that of
    a model it finds by name. It puts them into the adapter's file under their own names, and
    `load_adapter` and `PeftModel.from_pretrained` read them from there.

    Args:
        model: With or without an adapter.
        folder: Where to.
        state_dict: The weights, where they are not the model's own.
    """
    if not is_adapted(model):
        model.save_pretrained(str(folder), state_dict=state_dict)
        return
    weights = model.state_dict() if state_dict is None else state_dict
    # of tied tables one name is enough: they are tied again where they are read
    twice = _second_names(model)
    weights = {name: weight for name, weight in weights.items() if name not in twice}
    trained = bool(embedding_weights(model))
    model.save_pretrained(  # type: ignore[call-arg]
        str(folder), state_dict=weights, save_embedding_layers=trained
    )


def _second_names(model: nn.Module) -> set[str]:
    """The names of a tied head; peft needs every name of what it has copied or wrapped itself."""
    head = cast(PreTrainedModel, under_adapters(model)).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return set()
    first = {name for name, _ in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name for name, weight in every if weight is head.weight} - first
