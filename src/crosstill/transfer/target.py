"""The tokenizer that a model shall read: another's tokens with the model's own special tokens."""

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tokenizers import AddedToken

from crosstill.errors import ConfigError, TokenizerError
from crosstill.hub import load_stated_tokenizer, load_tokenizer
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.text.parts import tokenizer_parts
from crosstill.text.spec import TokenizerSpec, read_spec
from crosstill.transfer.bytelevel import byte_tokenizer
from crosstill.transfer.specials import (
    kept_specials,
    plain_tokenizer,
    renumbered,
    with_specials,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

BYTES = "bytes"
"""Names the tokenizer of a byte model, where else a folder or a name on the hub stands."""

SpecialTokens = Literal["keep", "change"]
"""Whose special tokens, roles and template a model has after a transfer."""


def target_tokenizer(
    to: str | Path,
    source_tokenizer: "PreTrainedTokenizerFast | TextEncoder",
    *,
    special_tokens: SpecialTokens = "keep",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedTokenizerFast":
    """The tokenizer that a model gets by a transfer: a plain one, with the ids 0 to V - 1.

    With `special_tokens="keep"` the target gives its ordinary tokens and nothing else. They keep
    their order and are numbered anew from 0, since the target's own special tokens are gone. The
    source's special tokens follow them, with the source's roles, chat template, and what its
    post-processor puts round a text. So the model goes on seeing the tokens it was taught to begin
    and to stop with. An ordinary token that is written like a kept special token gives way to it:
    a text with these characters was never that token for the source either.

    With `"change"` it is the target itself, ids included. Only holes in its numbering are closed.

    Args:
        to: "bytes", or the target's folder, `tokenizer.json` or name on the hub. The file
            `tokenizer.json` is read as it states itself.
        source_tokenizer: the tokenizer that the model was trained with.
        special_tokens: "keep" those of the source or "change" to those of the target.
        revision: branch, tag or commit of the target on the hub.
        trust_remote_code: as in `load_tokenizer`.

    Returns:
        A `PreTrainedTokenizerFast` that `AutoTokenizer` loads again with no code of ours.

    Raises:
        ConfigError: an unknown choice, or no such target.
        TrustError: the target asks for code.
        TokenizerError: the target cannot spell every byte without a token of its own for unknown
            text, or a tokenizer cannot be read as bytes.

    Source: Minixhofer et al. 2025, arXiv:2503.20083, section 4.1 and table 1: to change the special
    tokens as well costs two to nine points.
    """
    if special_tokens not in get_args(SpecialTokens):
        raise ConfigError(
            f"special_tokens: expected 'keep' (the model's own) or 'change' (to the target's), got "
            f"{special_tokens!r}: choose one."
        )
    source = text_encoder(source_tokenizer)
    if str(to) == BYTES:
        if special_tokens == "change":
            raise ConfigError(
                "special_tokens: expected 'keep' for bytes, got 'change': bytes have no special "
                "tokens of their own to change to."
            )
        return byte_tokenizer(source)
    target = load_stated_tokenizer(to, revision=revision, trust_remote_code=trust_remote_code)
    made = _kept(target, source) if special_tokens == "keep" else _changed(target, source)
    made.name_or_path = str(to)
    tokenizer_parts(made)  # what it cannot spell shows here
    return made


def whole_tokenizer(
    name: str, source_tokenizer: "PreTrainedTokenizerFast | TextEncoder", **loading: Any
) -> "PreTrainedTokenizerFast":
    """Another's tokenizer with its own special tokens, or bytes with those of the source.

    Args:
        name: a folder, a name on the hub, or "bytes".
        source_tokenizer: the tokenizer that the model was trained with.
        loading: as `load_tokenizer` takes it.

    Raises:
        ConfigError: there is no such tokenizer.
        TrustError: it asks for code.
        TokenizerError: the source cannot be read.
    """
    return byte_tokenizer(source_tokenizer) if name == BYTES else load_tokenizer(name, **loading)


def _kept(target: "PreTrainedTokenizerFast", source: TextEncoder) -> "PreTrainedTokenizerFast":
    """The target's ordinary tokens with all else of the source."""
    _refuse_unknown(target)
    spec = read_spec(target)
    kept = kept_specials(source)
    gone = {spec.added[id].content for id in spec.control & spec.added.keys()}
    gone |= {token.content for token in kept}
    state = json.loads(target.backend_tokenizer.to_str())
    state["model"] = _without(state["model"], spec, gone)
    if state["model"]["type"] == "Unigram":
        # It cannot be without a piece for unknown text, although none is unknown.
        unknown = state["model"]["vocab"][-1][0]
        own = [token for token in kept if token.content == unknown]
        rest = [token for token in kept if token.content != unknown]
        kept = [*(own or [AddedToken(unknown, special=True, normalized=False)]), *rest]
    vocab = _ids(state["model"])
    content = [token for token in state["added_tokens"] if token["content"] not in gone]
    beyond = [token["content"] for token in content if token["content"] not in vocab]
    ids = vocab | {literal: len(vocab) + i for i, literal in enumerate(beyond)}
    state["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in content]
    return with_specials(state, ids, kept, source)


def _refuse_unknown(target: "PreTrainedTokenizerFast") -> None:
    """A token for unknown text is one of the target's special tokens, and these go."""
    table = tokenizer_parts(target).bytes
    if table.unknown_id is not None:
        name = target.convert_ids_to_tokens(table.unknown_id)
        raise TokenizerError(
            f"{target.name_or_path or 'the target'}: expected a target that spells every byte, got "
            f"one of the kind {table.kind!r} that writes {name} for what it has no token for, and "
            "the target's special tokens are not kept: take a byte-level target or one with byte "
            "fallback, or special_tokens='change'."
        )


def _without(
    model: Mapping[str, Any], spec: TokenizerSpec, gone: Collection[str]
) -> dict[str, Any]:
    """The model with ordinary tokens alone, numbered anew in their order."""
    if model["type"] == "Unigram":
        unknown = model["vocab"][model["unk_id"]]
        pieces = [piece for piece in model["vocab"] if piece[0] not in gone]
        return {**model, "vocab": [*pieces, unknown], "unk_id": len(pieces)}
    ordered = sorted(model["vocab"].items(), key=lambda item: item[1])
    vocab = {token: id for id, token in enumerate(t for t, _ in ordered if t not in gone)}
    if model["type"] != "BPE":
        return {**model, "vocab": vocab}
    merges = [
        [left, right]
        for left, right in model["merges"]
        if left in vocab
        and right in vocab
        and left + right.removeprefix(spec.continuing_prefix) in vocab
    ]
    return {**model, "vocab": vocab, "merges": merges, "unk_token": None}


def _ids(model: Mapping[str, Any]) -> dict[str, int]:
    """The id of each token of a model's vocabulary."""
    if model["type"] == "Unigram":
        return {piece: id for id, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _changed(target: "PreTrainedTokenizerFast", source: TextEncoder) -> "PreTrainedTokenizerFast":
    """The target as it is, but for holes between its ids."""
    if source.tokenizer.chat_template and not target.chat_template:
        log.warning(
            "%s has no chat template, and the source's is not kept: the model loses its chat "
            "format. Keep its special tokens, or set a chat template.",
            target.name_or_path,
        )
    from transformers import PreTrainedTokenizerFast

    old = target.get_vocab()
    whole = len(old) == max(old.values()) + 1
    if whole and type(target) is PreTrainedTokenizerFast:
        target.clean_up_tokenization_spaces = False  # as in every tokenizer made here
        return target
    state = json.loads(target.backend_tokenizer.to_str())
    if whole:
        return plain_tokenizer(state, target)
    vocab = _ids(state["model"])
    # Tokens of the model come first: an added token gets its number behind them in any case.
    order = sorted(old, key=lambda token: (token not in vocab, old[token]))
    ids = {token: id for id, token in enumerate(order)}
    state["model"]["vocab"] = {token: ids[token] for token in order if token in vocab}
    added = sorted(state["added_tokens"], key=lambda token: ids[token["content"]])
    state["added_tokens"] = [{**token, "id": ids[token["content"]]} for token in added]
    state["post_processor"] = renumbered(state["post_processor"], ids)
    return plain_tokenizer(state, target)
