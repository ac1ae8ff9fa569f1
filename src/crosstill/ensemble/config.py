"""What `transformers` asks of an ensemble: sizes, special tokens, and how to generate."""

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from crosstill.ensemble.vocabulary import CommonVocabulary
from crosstill.text.encode import TextEncoder


class EnsembleConfig(PretrainedConfig):
    """What `transformers` asks of a model: sizes and special tokens, those of the pivot."""

    model_type = "crosstill_ensemble"


def ensemble_config(
    models: Sequence[PreTrainedModel], pivot: TextEncoder, common: CommonVocabulary
) -> EnsembleConfig:
    """The sizes and special tokens of the pivot, and the shortest of the members' windows."""
    limits = [
        getattr(model.config.get_text_config(), "max_position_embeddings", None)
        for model in models  # some architectures have no limit
    ]
    roles = pivot.roles
    ends = common.ends
    # A padding token that was added to the tokenizer alone has no row in the model.
    known = roles.pad is not None and roles.pad < common.size
    pad = roles.pad if known else next(iter(ends), 0)
    values: dict[str, Any] = {
        "vocab_size": common.size,
        "max_position_embeddings": min((limit for limit in limits if limit), default=None),
        "bos_token_id": roles.bos,
        "eos_token_id": list(ends) or None,
        "pad_token_id": pad,
        "is_decoder": True,
        "tie_word_embeddings": False,
    }
    return EnsembleConfig(**values)


def greedy_config(config: EnsembleConfig) -> GenerationConfig:
    """Greedy search until an end; no member's own settings."""
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
