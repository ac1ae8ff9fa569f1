"""A model gets the embeddings of another tokenizer's vocabulary, in place."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.transfer.initial import (
    DEFAULT,
    Initialiser,
    Source,
    TransplantReport,
    parse_initialiser,
)
from crosstill.transfer.tables import write_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Tokenizer = PreTrainedTokenizerFast | TextEncoder

__all__ = ["TransplantReport", "transplant"]


def transplant(
    model: "PreTrainedModel",
    source_tokenizer: "Tokenizer",
    target_tokenizer: "Tokenizer",
    *,
    initial: str | Mapping[str, Any] | Initialiser = DEFAULT,
    texts: Sequence[str | Mapping[str, Any]] = (),
    seed: int = 0,
    compile_blocks: bool = False,
) -> TransplantReport:
    """Give a model the embeddings of another tokenizer's vocabulary, in place.

    This is where training starts, not a finished model: what the body knows of token boundaries is
    still that of the old tokenizer. Tied embeddings stay tied unless the initialiser unties them.

    `vocab_size` and the ids of bos, eos and pad in the model's and the generation's configuration
    become those of the target.

    Args:
        model: a causal language model; changed in place.
        source_tokenizer: the fast tokenizer it was trained with.
        target_tokenizer: the fast tokenizer it shall read from now on.
        initial: how the new rows are made: a name of `crosstill.transfer.initial.initialisers`, a
            mapping of a name to options, or an initialiser.
        texts: texts, or rows, of the kind the model will read, for an initialiser that looks at
            some.
        seed: for an initialiser that draws.
        compile_blocks: for an initialiser that trains blocks (`spell`): compile them meanwhile,
            see `crosstill.blocks.compiled_blocks`. It needs a compiler.

    Raises:
        ConfigError: the model has fewer rows than the source tokenizer has tokens, its embeddings
            are no plain table, there is no such initialiser, it needs texts, or blocks shall be
            compiled and there is no compiler.
        TokenizerError: the bytes of a tokenizer cannot be read.
    """
    maker = parse_initialiser(initial)
    if maker.needs_texts and not texts:
        raise ConfigError(f"the initialiser {maker.name!r} reads texts, and none were given")
    source, target = text_encoder(source_tokenizer), text_encoder(target_tokenizer)
    start = maker.start(Source(model, source, target, texts, seed, compile_blocks))
    write_tables(model, start.tables)
    with torch.no_grad():
        for name, value in start.body.items():
            model.get_parameter(name).copy_(value)
    _update_config(model, target)
    return start.report


def _update_config(model: "PreTrainedModel", target: TextEncoder) -> None:
    """Write the target's special ids into the configurations."""
    tokenizer, roles = target.tokenizer, target.roles
    ends = list(dict.fromkeys((*roles.eot_ids, *roles.eos_ids)))
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}
    for config in configs.values():
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.bos_token_id = tokenizer.bos_token_id
        model.generation_config.eos_token_id = ends or None
        model.generation_config.pad_token_id = tokenizer.pad_token_id
