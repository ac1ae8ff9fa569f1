"""What a model keeps of its own tokenizer when it gets another: special tokens, roles, template.

Tokenizers are handled here as the JSON of a `tokenizers.Tokenizer`, in which all parts are plain.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from crosstill.errors import TokenizerError
from crosstill.text.encode import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

_PLACEHOLDER = re.compile(r"unused|reserved|place.?holder", re.IGNORECASE)
_SETTINGS = ("model_max_length", "padding_side", "truncation_side", "model_input_names")


def kept_specials(source: TextEncoder) -> list[AddedToken]:
    """The special tokens that a model keeps of its own tokenizer, in the order of their ids.

    All of them, but for those that are called unused, reserved or a placeholder and that neither a
    role nor the chat template uses: Gemma 3 has 6,242 such, and Llama 3 has 248.
    """
    tokenizer = source.tokenizer
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    named = {*tokenizer.all_special_tokens}
    template = json.dumps(tokenizer.chat_template, ensure_ascii=False)
    kept, left = [], 0
    for id in sorted(source.roles.special_ids & added.keys()):
        literal = added[id].content
        used = source.roles.role_of(id) != "other" or literal in named or literal in template
        if used or not _PLACEHOLDER.search(literal):
            # The source's normaliser is gone, so the literal is matched as it stands.
            token = added[id]
            kept.append(
                AddedToken(
                    literal,
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=True,
                )
            )
        else:
            left += 1
    if left:
        log.info("left behind %d placeholders that no role and no template uses", left)
    return kept


def with_specials(
    state: Mapping[str, Any],
    ordinary: Mapping[str, int],
    kept: Sequence[AddedToken],
    source: TextEncoder,
) -> "PreTrainedTokenizerFast":
    """Put special tokens, roles, post-processor and chat template of the source on a tokenizer.

    Args:
        state: the JSON of a tokenizer without special tokens.
        ordinary: the ids of its tokens; a special token that is not there gets the next free one.
        kept: the special tokens.
        source: whose post-processor, roles and template are taken.

    Raises:
        TokenizerError: the source's post-processor adds a token that is not special.
    """
    new = [token.content for token in kept if token.content not in ordinary]
    ids = {**ordinary, **{literal: len(ordinary) + i for i, literal in enumerate(new)}}
    special = {token.content: ids[token.content] for token in kept}
    added = [*state["added_tokens"], *(_added(token, ids[token.content]) for token in kept)]
    # What adds tokens is the source's; what trims offsets goes with how the target writes tokens.
    own = [part for part in _leaves(state["post_processor"]) if part["type"] == "ByteLevel"]
    theirs = _leaves(_post_processor(source.tokenizer.backend_tokenizer))
    adding = [renumbered(part, special) for part in theirs if part["type"] != "ByteLevel"]
    parts = [*own, *adding]
    post = parts[0] if len(parts) == 1 else {"type": "Sequence", "processors": parts}
    whole = {
        **state,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": post if parts else None,
    }
    return plain_tokenizer(whole, source.tokenizer)


def plain_tokenizer(
    state: Mapping[str, Any], like: "PreTrainedTokenizerFast"
) -> "PreTrainedTokenizerFast":
    """A tokenizer of the given JSON with the names, template and settings of another.

    It is a `PreTrainedTokenizerFast` and nothing more, so that no class of a model family builds
    it anew from its vocabulary when it is loaded.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(json.dumps({**state, "truncation": None, "padding": None}))
    common = PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
    names = {name: str(token) for name, token in like.special_tokens_map.items()}
    own = {name: token for name, token in names.items() if name not in common}
    known = backend.get_vocab()
    listed: Any = like.extra_special_tokens  # mistyped upstream
    extra = [token for token in map(str, listed) if token in known]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,  # it would eat spaces that the text has
        **({"model_specific_special_tokens": own} if own else {}),
        **({"extra_special_tokens": extra} if extra else {}),
        **{name: token for name, token in names.items() if name in common},
        **{key: getattr(like, key) for key in _SETTINGS},
    )
    tokenizer.chat_template = like.chat_template
    return tokenizer


def renumbered(part: Mapping[str, Any] | None, ids: Mapping[str, int]) -> dict[str, Any] | None:
    """A post-processor's JSON that adds the same tokens under other ids.

    Raises:
        TokenizerError: it adds a token that has none.
    """
    if part is None:
        return None
    out = dict(part)
    if "processors" in out:
        out["processors"] = [renumbered(member, ids) for member in out["processors"]]
    for end in ("cls", "sep"):  # as BERT's and RoBERTa's kinds have them: [token, id]
        if end in out:
            out[end] = [out[end][0], _id_of(out[end][0], ids)]
    if "special_tokens" in out:
        out["special_tokens"] = {
            name: {**entry, "ids": [_id_of(token, ids) for token in entry["tokens"]]}
            for name, entry in out["special_tokens"].items()
        }
    return out


def _id_of(token: str, ids: Mapping[str, int]) -> int:
    if token not in ids:
        raise TokenizerError(
            f"expected a source tokenizer that puts special tokens round a text, got one that puts "
            f"{token!r} there, which is not special: mark it special, or change its post-processor."
        )
    return ids[token]


def _leaves(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A post-processor's parts in order, sequences opened."""
    if part is None or part["type"] != "Sequence":
        return [] if part is None else [part]
    return [leaf for member in part["processors"] for leaf in _leaves(member)]


def _post_processor(backend: Tokenizer) -> dict[str, Any] | None:
    component = backend.post_processor
    return None if component is None else json.loads(component.__getstate__())


def _added(token: AddedToken, id: int) -> dict[str, Any]:
    flags = {k: getattr(token, k) for k in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"id": id, "content": token.content, **flags, "special": token.special}
