"""First embeddings for a model that gets another tokenizer: averages over the old tokens.

Axes: Vs rows of the source vocabulary, Vt of the target, D hidden.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstill.errors import ConfigError, DataError
from crosstill.text.encode import TextEncoder, text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Tokenizer = PreTrainedTokenizerFast | TextEncoder


@dataclass(frozen=True)
class TransplantReport:
    """Where the rows of the new embeddings come from; the counts add up to the vocabulary.

    Attributes:
        copied: tokens that spell the same bytes as a token of the source.
        averaged: tokens whose bytes several source tokens spell.
        by_role: special tokens that took the row of the source's token of the same role or name.
        mean: tokens with none of these, which took the mean of all source rows.
    """

    copied: int
    averaged: int
    by_role: int
    mean: int


def transplant(
    model: "PreTrainedModel", source_tokenizer: "Tokenizer", target_tokenizer: "Tokenizer"
) -> TransplantReport:
    """Give a model the embeddings of another tokenizer's vocabulary, in place.

    Each target token gets the mean of the source rows that spell its bytes (fast vocabulary
    transfer). Input and output embeddings are treated alike; tied ones stay tied. This is where
    training starts, not a finished model: what the body knows of token boundaries is still that of
    the old tokenizer.

    - The same bytes: the row is copied bit for bit.
    - A special token: the source's token of the same role (bos, eos, eot, header, pad, unk), else
      of the same name.
    - Other bytes: the source tokenizer's own spelling of them where they are text, else the
      longest source tokens that fit, from the left.
    - Nothing of these: the mean of all source rows.

    `vocab_size` and the ids of bos, eos and pad in the model's and the generation's configuration
    become those of the target.

    Args:
        model: a causal language model; changed in place.
        source_tokenizer: the fast tokenizer it was trained with.
        target_tokenizer: the fast tokenizer it shall read from now on.

    Raises:
        ConfigError: the model has fewer rows than the source tokenizer has tokens, or its
            embeddings are no plain table.
        TokenizerError: the bytes of a tokenizer cannot be read.

    Source: Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression"; the order of
    the cases follows arXiv:2503.20083, except that the rest gets the mean, not Gaussian noise.
    """
    source, target = text_encoder(source_tokenizer), text_encoder(target_tokenizer)
    rows = len(_tables(model)[0])
    if rows < source.vocab_size:
        raise ConfigError(
            f"the model has {rows} embedding rows and its tokenizer {source.vocab_size} tokens: "
            f"the source tokenizer belongs to another model"
        )
    cover, report = _cover(source, target)
    old = [table.detach().clone() for table in _tables(model)]
    model.resize_token_embeddings(target.vocab_size, mean_resizing=False)
    with torch.no_grad():
        for table, before in zip(_tables(model), old, strict=True):
            before = before[: source.vocab_size].reshape(source.vocab_size, -1)
            table.copy_(averages(before, cover).reshape(table.shape))
    _update_config(model, target)
    return report


def _tables(model: "PreTrainedModel") -> list[Tensor]:
    """The tensors with a row for each token: embeddings, head unless it is tied, head's bias."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(inputs, nn.Embedding) or not isinstance(outputs, nn.Linear):
        raise ConfigError(
            f"{type(model).__name__} has {type(inputs).__name__} and {type(outputs).__name__} as "
            f"embeddings and head; a plain table and a plain linear layer are expected"
        )
    tables = [inputs.weight]
    if outputs.weight is not inputs.weight:
        tables.append(outputs.weight)
    return tables if outputs.bias is None else [*tables, outputs.bias]


def averages(rows: Float[Tensor, "Vs D"], cover: list[list[int]]) -> Float[Tensor, "Vt D"]:
    """Average the rows of each list; an empty list gets the mean of all rows.

    Sums are made in float32 at least; a list with one row copies it exactly.

    Args:
        rows: the source's embedding rows.
        cover: for each target token the source ids that spell it.
    """
    work = rows.to(torch.promote_types(rows.dtype, torch.float32))
    sizes = torch.tensor([len(ids) for ids in cover])
    flat = torch.tensor([id for ids in cover for id in ids], dtype=torch.long)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
    found = nn.functional.embedding_bag(
        flat.to(rows.device), work, starts.to(rows.device), mode="mean"
    )
    found[sizes.to(rows.device) == 0] = work.mean(0)
    return found.to(rows.dtype)


def _cover(source: TextEncoder, target: TextEncoder) -> tuple[list[list[int]], TransplantReport]:
    """Find for each target token the source tokens it is made from."""
    speller = _Speller(source)
    cover: list[list[int]] = []
    counts = dict.fromkeys(("copied", "averaged", "by_role", "mean"), 0)
    for id in range(target.vocab_size):
        if target.bytes.special[id]:
            ids = _same_special(source, target, id)
            kind = "by_role"
        else:
            ids = speller.spell(target.bytes.token(id))
            kind = "copied" if len(ids) == 1 else "averaged"
        counts[kind if ids else "mean"] += 1
        cover.append(ids)
    return cover, TransplantReport(**counts)


def _same_special(source: TextEncoder, target: TextEncoder, id: int) -> list[int]:
    """The source's special token of the same name, else of the same role."""
    # the name first: one role can have several tokens
    name = str(target.tokenizer.convert_ids_to_tokens(id))
    same = source.tokenizer.get_vocab().get(name)
    if same is not None and source.bytes.special[same]:
        return [same]
    theirs = source.roles
    chief = {
        "bos": theirs.bos,
        "eos": theirs.eos,
        "eot": theirs.eot,
        "pad": theirs.pad,
        "unk": theirs.unk,
        "start_header": next(iter(theirs.start_header_ids), None),
        "end_header": next(iter(theirs.end_header_ids), None),
    }
    found = chief.get(target.roles.role_of(id) or "")
    return [] if found is None else [found]


class _Speller:
    """Spells bytes with a tokenizer's tokens."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._ids: dict[bytes, int] = {}
        # the later entry wins: go from byte-fallback pieces to ordinary ones, so that "A" is found
        # rather than "<0x41>", and within each from high ids to low ones
        names = encoder.tokenizer.convert_ids_to_tokens(list(range(encoder.vocab_size)))
        fallback = [bool(n) and n.startswith("<0x") and n.endswith(">") for n in names]
        order = sorted(range(encoder.vocab_size), key=lambda id: (not fallback[id], -id))
        for id in order:
            if encoder.bytes.lengths[id]:
                self._ids[encoder.bytes.token(id)] = id
        self._longest = max(map(len, self._ids), default=0)

    def spell(self, raw: bytes) -> list[int]:
        """Ids that spell `raw`: one, or the tokenizer's own choice, or the longest from the left.

        Empty if no ids do.
        """
        if raw in self._ids:
            return [self._ids[raw]]
        return self._own_choice(raw) or self._longest_first(raw)

    def _own_choice(self, raw: bytes) -> list[int]:
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return []
        # a tokenizer that puts a space before each text spells " x" for "x"
        prefix = self._encoder.normalization.prefix.decode()
        if prefix and text.startswith(prefix):
            text = text[len(prefix) :]
        try:
            ids = self._encoder.encode(text)
        except DataError:  # a control character, say, for which it has no token
            return []
        return ids if self._encoder.bytes.spell(ids) == raw else []

    def _longest_first(self, raw: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(raw):
            lengths = range(min(self._longest, len(raw) - start), 0, -1)
            found = next((n for n in lengths if raw[start : start + n] in self._ids), 0)
            if not found:
                return []
            ids.append(self._ids[raw[start : start + found]])
            start += found
        return ids


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
