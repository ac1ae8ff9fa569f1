"""What a fast tokenizer is made of, read from its own parts: the one place that knows their JSON.

Every component of a `tokenizers.Tokenizer` states itself as JSON. The vocabulary and the added
tokens are asked for directly, so that the merges of a large vocabulary are never printed.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, models

from crosstill.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_HTML = (
    "a abbr address area article aside audio b base bdi bdo blockquote body br button canvas "
    "caption center cite code col colgroup data datalist dd del details dfn dialog div dl dt em "
    "embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head "
    "header hgroup hr html i iframe img input ins kbd label legend li link main map mark menu "
    "meta meter nav noscript object ol optgroup option p param picture pre progress q rp rt ruby "
    "s samp script search section select slot small source span strike strong style sub summary "
    "sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul var "
    "video wbr"
)
_HTML_TAG = re.compile(rf"</?(?:{'|'.join(_HTML.split())})/?>", re.IGNORECASE)
_MARKER = re.compile(r"\u2581?(?:<\|.*\|>|<<?[^<>\s]+>>?|\[[^\[\]\s]+\])")


@dataclass(frozen=True, eq=False)
class TokenizerSpec:
    """The parts of one fast tokenizer.

    Attributes:
        name: What to call it in messages.
        model: "BPE", "Unigram", "WordPiece" or "WordLevel".
        vocab: The model's own vocabulary, without tokens added beside it.
        added: Added tokens by id.
        control: Ids that are never text: special tokens, tokens with a role, and markers.
        normalizers: The JSON of every normaliser in order, sequences flattened.
        pre_tokenizers: The JSON of every pre-tokenizer in order, sequences flattened.
        unknown: The id the model gives to what it cannot spell, if any.
        byte_fallback: Whether the model writes unknown characters as `<0xXX>` tokens.
        continuing_prefix: What marks a token that continues a word ("##").
        word_suffix: What marks a token that ends a word ("</w>").
    """

    name: str
    model: str
    vocab: Mapping[str, int]
    added: Mapping[int, AddedToken]
    control: frozenset[int]
    normalizers: tuple[Mapping[str, Any], ...]
    pre_tokenizers: tuple[Mapping[str, Any], ...]
    unknown: int | None
    byte_fallback: bool
    continuing_prefix: str
    word_suffix: str

    @property
    def byte_level(self) -> bool:
        """Whether tokens are written in the byte alphabet."""
        parts = (*self.normalizers, *self.pre_tokenizers)
        return any(part["type"] == "ByteLevel" for part in parts)

    @property
    def mark(self) -> str | None:
        """The character that stands for a space in the vocabulary, if any."""
        for part in self.pre_tokenizers:
            if part["type"] == "Metaspace":
                return part["replacement"]
        for part in self.normalizers:
            if part["type"] == "Replace" and part["pattern"] == {"String": " "}:
                return part["content"] if len(part["content"]) == 1 else None
        return None

    def content(self) -> dict[int, AddedToken]:
        """Added tokens that are text: runs of whitespace, words, HTML tags."""
        return {id: token for id, token in self.added.items() if id not in self.control}


def read_spec(tokenizer: "PreTrainedTokenizerFast") -> TokenizerSpec:
    """Reads the parts of a Hugging Face fast tokenizer.

    Raises:
        TokenizerError: It is a slow tokenizer, or no tokenizer of transformers at all.
    """
    name = tokenizer_name(tokenizer)
    backend = tokenizer.backend_tokenizer
    vocab = backend.get_vocab(with_added_tokens=False)
    model, unknown, byte_fallback, prefix, suffix = _model_parts(backend.model, vocab)
    added = backend.get_added_tokens_decoder()
    control = {id for id, token in added.items() if is_control(token)}
    control.update(id for id in tokenizer.all_special_ids if id in added)
    if unknown is not None:
        control.add(unknown)
    return TokenizerSpec(
        name=name,
        model=model,
        vocab=vocab,
        added=added,
        control=frozenset(control),
        normalizers=_flat(backend.normalizer, "normalizers"),
        pre_tokenizers=_flat(backend.pre_tokenizer, "pretokenizers"),
        unknown=unknown,
        byte_fallback=byte_fallback,
        continuing_prefix=prefix,
        word_suffix=suffix,
    )


def tokenizer_name(tokenizer: object) -> str:
    """What to call a tokenizer in a message; refuses what is not a fast tokenizer.

    Raises:
        TokenizerError: A slow tokenizer, or something else.
    """
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    kind = type(tokenizer).__name__
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer.name_or_path or kind
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TokenizerError(
            f"{tokenizer.name_or_path or kind}: expected a fast tokenizer, got the slow {kind}, "
            "whose tokens cannot be read as bytes: load it with "
            "AutoTokenizer.from_pretrained(..., use_fast=True), or convert it with "
            "transformers.convert_slow_tokenizer.convert_slow_tokenizer and wrap the result in "
            "PreTrainedTokenizerFast(tokenizer_object=...)."
        )
    raise TokenizerError(
        f"expected a transformers PreTrainedTokenizerFast, got {kind}: wrap a tokenizers.Tokenizer "
        "in PreTrainedTokenizerFast(tokenizer_object=...), or load one with AutoTokenizer."
    )


def is_control(token: AddedToken) -> bool:
    """Whether an added token steers the model instead of being text.

    Special tokens do. So do tokens with the shape of a marker, `<...>`, `<|...|>` or `[...]`,
    whatever their flag says (`<think>`, `<｜User｜>`, `<unused7>`), unless they are the tag of an
    HTML element, which is text.

    Example:
        >>> is_control(AddedToken("<think>", special=False))
        True
        >>> is_control(AddedToken("</table>", special=False))
        False
        >>> is_control(AddedToken("    ", special=False))
        False
    """
    if token.special:
        return True
    text = token.content
    return bool(_MARKER.fullmatch(text)) and not _HTML_TAG.fullmatch(text)


def _flat(component: Any, members: str) -> tuple[Mapping[str, Any], ...]:
    """The JSON of a normaliser or pre-tokenizer, with sequences opened."""
    if component is None:
        return ()
    return tuple(_leaves(json.loads(component.__getstate__()), members))


def _leaves(part: dict[str, Any], members: str) -> list[dict[str, Any]]:
    if part["type"] != "Sequence":
        return [part]
    return [leaf for member in part[members] for leaf in _leaves(member, members)]


def _model_parts(
    model: models.Model, vocab: Mapping[str, int]
) -> tuple[str, int | None, bool, str, str]:
    """Kind, unknown id, byte fallback, continuing prefix and word suffix of a model."""
    if isinstance(model, models.Unigram):
        state = json.loads(model.__getstate__())
        return "Unigram", state["unk_id"], bool(state.get("byte_fallback")), "", ""
    if isinstance(model, models.BPE):
        unknown = None if model.unk_token is None else vocab.get(model.unk_token)
        prefix, suffix = model.continuing_subword_prefix, model.end_of_word_suffix
        return "BPE", unknown, model.byte_fallback, prefix or "", suffix or ""
    if isinstance(model, models.WordPiece):
        prefix = model.continuing_subword_prefix
        return "WordPiece", vocab.get(model.unk_token), False, prefix, ""
    if isinstance(model, models.WordLevel):
        return "WordLevel", vocab.get(model.unk_token), False, "", ""
    raise TokenizerError(
        f"expected a BPE, Unigram, WordPiece or WordLevel model, got {type(model).__name__}: "
        "crosstill cannot read its tokens as bytes; use another tokenizer."
    )
