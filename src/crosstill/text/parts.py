"""A fast tokenizer taken apart: token bytes, rewriting, and a backend for content.

Made and checked once for each tokenizer object, and once more when it gained tokens.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import AddedToken, Tokenizer, models

from crosstill.errors import TokenizerError
from crosstill.text.bytes import TokenBytes, build_table
from crosstill.text.normalize import Normalization
from crosstill.text.spec import TokenizerSpec, read_spec, tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TORTURE = (
    "The quick brown fox, 12345 times.",
    "ab",
    " leading and trailing ",
    "  two  spaces   three\ttab\n\nnew lines\r\nand\rmore\n ",
    "\u2581literal\u2581marks \u2581\u2581 twice",
    "na\u00efve cafe\u0301 \u00c5 \u212b \u1e9b\u0323 \u0130I\u0131 \u03a3\u03c3\u03c2",
    "\ufb01ne \u00bd \u2460 \u3000wide\u00a0nbsp\u2009thin",
    "\uac00\u1100\u1161\u11a8 \ud55c\uad6d\uc5b4 \u6771\u4eac\u306f \u304b\u3099",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "nul\x00bell\x07esc\x1bdel\x7f\x85 \ufeffbom\u200bzwsp\u2028ls\u2029ps\u00adshy",
    "\u0378 \U0003ffff \U000e0041 \ue000 \U0010ffff \ufffd",
    "a-b_c/d\\e\"f'g`h #tag ##ing @x $1 100% ^&*()[]{}<>|~+=?!;:,.",
    "don't I'M we'll 3.14 1,000 x<0xE4>y <0x41> <unk> [UNK] </w> </s>",
)
"""Texts that a tokenizer must spell to the byte, or be refused."""


@dataclass(frozen=True, eq=False)
class TokenizerParts:
    """What crosstill knows of one tokenizer.

    Attributes:
        bytes: What each id spells.
        normalization: How text is rewritten before it is cut.
        backend: The tokenizer for content: it adds nothing and makes no control token from text.
        control: Ids that are never text.
    """

    bytes: TokenBytes
    normalization: Normalization
    backend: Tokenizer
    control: frozenset[int]


_PARTS: "WeakKeyDictionary[object, tuple[int, TokenizerParts]]" = WeakKeyDictionary()


def tokenizer_parts(tokenizer: "PreTrainedTokenizerFast") -> TokenizerParts:
    """The parts of a fast tokenizer, checked against the law of `crosstill.text.bytes`.

    Raises:
        TokenizerError: A slow tokenizer, or one that breaks the law.
    """
    tokenizer_name(tokenizer)
    state = fingerprint(tokenizer)
    known = _PARTS.get(tokenizer)
    if known is None or known[0] != state:
        known = _PARTS[tokenizer] = (state, _make(tokenizer))
    return known[1]


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Changes when the tokenizer gains tokens or its special tokens change."""
    return hash((len(tokenizer), tuple(tokenizer.all_special_tokens)))


def _make(tokenizer: "PreTrainedTokenizerFast") -> TokenizerParts:
    spec = read_spec(tokenizer)
    _refuse_greedy(spec)
    backend = _content_backend(tokenizer.backend_tokenizer, spec)
    literal_bytes = spec.byte_fallback and _reads_literal_bytes(backend, spec)
    normalization = Normalization(spec, literal_bytes=literal_bytes)
    added = {
        id: normalization.token_text(token.content, token.normalized)
        for id, token in spec.content().items()
    }
    table = build_table(spec, added)
    parts = TokenizerParts(table, normalization, backend, spec.control)
    _check(spec, parts)
    return parts


def _refuse_greedy(spec: TokenizerSpec) -> None:
    for token in spec.content().values():
        if token.lstrip or token.rstrip:
            raise TokenizerError(
                f"{spec.name}: expected added tokens that spell themselves, got {token.content!r} "
                "with lstrip or rstrip, which swallows the whitespace beside it: mark it special, "
                "or add it without these flags."
            )


def _content_backend(backend: Tokenizer, spec: TokenizerSpec) -> Tokenizer:
    """A tokenizer that shares the model but cannot make a control token from text."""
    content = _assemble(backend, backend.model, spec)
    names = [spec.added[id].content for id in spec.control if id in spec.added]
    names = [name for name in names if name in spec.vocab]
    made = {
        id for row in content.encode_batch_fast(names, add_special_tokens=False) for id in row.ids
    }
    return (
        content
        if made.isdisjoint(spec.control - _may_occur(spec))
        else _assemble(backend, _without(backend.model, spec), spec)
    )


def _may_occur(spec: TokenizerSpec) -> set[int | None]:
    """The unknown token, unless its name is a piece that a Unigram model finds in a text."""
    return {spec.unknown} if spec.model != "Unigram" else set()


def _assemble(backend: Tokenizer, model: models.Model, spec: TokenizerSpec) -> Tokenizer:
    """A backend with this model; added tokens keep their ids, control tokens are never matched."""
    content = Tokenizer(model)
    if backend.normalizer is not None:
        content.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        content.pre_tokenizer = backend.pre_tokenizer
    size = len(spec.vocab)
    tokens = []
    for id, token in sorted(spec.added.items()):
        if id not in spec.control:
            tokens.append(token)
        elif id >= size:  # holds its place, so that the next content token gets its own id
            tokens.append(AddedToken(token.content, special=True, normalized=False))
    content.add_tokens(tokens)
    content.encode_special_tokens = True
    for id, token in spec.content().items():
        if content.token_to_id(token.content) != id:
            raise TokenizerError(
                f"{spec.name}: expected the added token {token.content!r} at id {id}, got "
                f"{content.token_to_id(token.content)} when it was added again: its added tokens "
                "have holes between their ids; save and load the tokenizer anew."
            )
    return content


def _without(model: models.Model, spec: TokenizerSpec) -> models.Model:
    """The model with its control tokens renamed, so that no text can spell them."""
    state = json.loads(model.__getstate__())
    hidden = {token for token, id in spec.vocab.items() if id in spec.control - _may_occur(spec)}
    if spec.model == "Unigram":
        state["vocab"] = [[_hidden(t) if t in hidden else t, score] for t, score in state["vocab"]]
    else:
        state["vocab"] = {_hidden(t) if t in hidden else t: id for t, id in state["vocab"].items()}
    if spec.model == "BPE":
        state["merges"] = [
            pair for pair in state["merges"] if hidden.isdisjoint([*pair, "".join(pair)])
        ]
    return Tokenizer.from_str(json.dumps(_bare_tokenizer(state))).model


def _hidden(token: str) -> str:
    return f"\ufdd0{token}\ufdd1"


def _bare_tokenizer(model: Mapping[str, Any]) -> dict[str, Any]:
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {"version": "1.0", "added_tokens": [], **dict.fromkeys(empty), "model": model}


def _reads_literal_bytes(backend: Tokenizer, spec: TokenizerSpec) -> bool:
    ids = backend.encode("<0x41>", add_special_tokens=False).ids
    return spec.vocab.get("<0x41>") in ids


def _check(spec: TokenizerSpec, parts: TokenizerParts) -> None:
    """Refuses a tokenizer whose tokens do not spell what they were given."""
    content = [token.content for token in spec.content().values()][:40]
    texts = [*TORTURE, *(f"a{token}b {token} c{token}" for token in content)]
    rows = parts.backend.encode_batch_fast(texts, add_special_tokens=False)
    for text, row in zip(texts, rows, strict=True):
        written = parts.normalization.spelled(text)
        if parts.bytes.unknown_id in row.ids or not set(parts.bytes.missing).isdisjoint(written):
            continue
        spelled = parts.bytes.spell(row.ids)
        expected = parts.normalization.prefix_of(text) + written
        if spelled != expected:
            at = int(np.argmin([*map(_equal, spelled, expected), False]))
            raise TokenizerError(
                f"{spec.name}: expected the tokens of {text!r} to spell "
                f"{expected[max(at - 8, 0) : at + 24]!r}, got "
                f"{spelled[max(at - 8, 0) : at + 24]!r} (from byte {max(at - 8, 0)} on): this "
                "tokenizer changes or drops text in a way crosstill does not know; use another."
            )


def _equal(a: int, b: int) -> bool:
    return a == b
