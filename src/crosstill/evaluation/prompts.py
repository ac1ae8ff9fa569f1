"""Prompts and responses as a model reads them: token ids, and which of them are the response's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from crosstill.errors import DataError
from crosstill.text.encode import TextEncoder
from crosstill.text.rows import parse_row
from crosstill.text.templates import render_chat

Prompt: TypeAlias = str | list[dict[str, str]]
"""Plain text, or chat messages that go through each model's own chat template."""


@dataclass(frozen=True)
class Reading:
    """A prompt with its response.

    Attributes:
        ids: token ids of both.
        first: index of the first token that ends after the prompt's last byte.
        num_bytes: bytes of the response, in UTF-8.
        lead: 1 where the first token opens the text, else 0.
    """

    ids: list[int]
    first: int
    num_bytes: int
    lead: int


def read(
    prompt: Prompt,
    response: str,
    encoder: TextEncoder,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Reading:
    """Tokenise a prompt and its response as one text, as the model would see them.

    Plain text opens with the beginning-of-text token if the tokenizer adds one by itself, else with
    its end-of-text token, if any. Without either the first token has no likelihood, so neither it
    nor its bytes count. Messages open as the chat template says, up to where the assistant speaks.

    Raises:
        ConfigError: messages, but the tokenizer has no chat template.
        DataError: a text cannot be spelled by the tokenizer, or a message holds the name of a
            special token.
    """
    if isinstance(prompt, str):
        start = encoder.roles.bos if encoder.adds_bos else encoder.roles.eos
        head, tail = [] if start is None else [start], prompt
        ids = encoder.encode(tail + response)
    else:
        head, tail, ids = _chat(prompt, response, encoder, chat_template_kwargs)
    prefix = _prefix(tail + response, ids, encoder)
    ends = encoder.bytes.ends(ids)
    first = int(np.searchsorted(ends, prefix + _seam(tail, response, encoder), side="right"))
    num_bytes = len(response.encode())
    if not response:
        first = len(ids)
    elif not head and first == 0 and ids:
        first, num_bytes = 1, max(num_bytes - (int(ends[0]) - prefix), 0)
    return Reading([*head, *ids], len(head) + first, num_bytes, min(len(head), 1))


def _chat(
    messages: list[dict[str, str]],
    response: str,
    encoder: TextEncoder,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> tuple[list[int], str, list[int]]:
    """Ids up to the template's last special token, the prompt's text behind it, and the rest's ids.

    A special token cuts the text on both sides, so behind the last one the prompt's text and the
    response are one text.
    """
    kwargs = {**(chat_template_kwargs or {}), "add_generation_prompt": True}
    prompt = render_chat(encoder.tokenizer, parse_row({"messages": messages}), kwargs)
    for message in messages:
        if encoder.bytes.special[_marked(message["content"], encoder)[0]].any():
            raise DataError(
                f"the message {message['content'][:60]!r} holds the name of a special token, which "
                f"would cut the conversation; reword it or leave the prompt out"
            )
    ids, offsets = _marked(prompt + response, encoder)
    special = np.flatnonzero(encoder.bytes.special[ids])
    own = [int(t) for t in special if offsets[t][0] < len(prompt)]
    cut, at = (own[-1] + 1, offsets[own[-1]][1]) if own else (0, 0)
    tail = prompt[at:]
    # names of special tokens in the response are text, and are spelled out
    rest = ids[cut:] if len(own) == len(special) else encoder.encode(tail + response)
    return ids[:cut], tail, rest


def _marked(text: str, encoder: TextEncoder) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and character offsets of a text in which names of special tokens are special tokens."""
    found = encoder.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    return list(found["input_ids"]), found["offset_mapping"]


def _prefix(text: str, ids: list[int], encoder: TextEncoder) -> int:
    """Bytes that the tokenizer put before the text by itself; an error if the rest is not it."""
    extra = int(encoder.bytes.lengths[ids].sum()) - len(encoder.normalization.spelled(text))
    unknown = encoder.bytes.unknown_id
    if (unknown is not None and unknown in ids) or extra not in (
        0,
        len(encoder.normalization.prefix),
    ):
        raise DataError(
            f"the tokenizer cannot spell the text {text[:60]!r}: it holds a character outside its "
            f"vocabulary. Its bits per byte are not defined; leave it out."
        )
    return extra


def _seam(tail: str, response: str, encoder: TextEncoder) -> int:
    """Locate the end of `tail` in the bytes that the tokens of `tail + response` spell.

    Where the tokenizer's normaliser joins the two (a combining accent at the start of the
    response), the joined bytes belong to the response.
    """
    normalization, offset = encoder.normalization, len(tail.encode())
    if not normalization.changes(tail + response):
        return offset
    for o0, o1, n0, n1 in normalization.pieces(tail + response):
        if o0 <= offset < o1:
            unchanged = o1 - o0 == n1 - n0
            return int(n0) + (int(offset - o0) if unchanged else 0)
    return len(normalization.spelled(tail + response))
