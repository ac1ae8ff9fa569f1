"""Prompts as a model reads them: what comes before a text whose probability is asked."""

from typing import TypeAlias

import numpy as np

from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder

Message: TypeAlias = dict[str, str]
Prompt: TypeAlias = str | list[Message]
"""Plain text, or chat messages that go through each model's own chat template."""


def opening(prompt: Prompt, encoder: TextEncoder) -> tuple[list[int], str]:
    """Split a prompt into tokens that stand for themselves and text that the response may join.

    A special token cuts the text on both sides, so what follows the last one is tokenised together
    with the response, exactly as the model would read the two as one text.

    Args:
        prompt: plain text opens with the beginning-of-text token if the tokenizer adds one by
            itself, else with its end-of-text token, if any: without a token before it the first
            one would have no likelihood. Messages open as the chat template says.
        encoder: of the model that reads it.

    Returns:
        Ids up to the last special token, and the text behind it.

    Raises:
        ConfigError: messages, but the tokenizer has no chat template.
    """
    roles = encoder.roles
    if isinstance(prompt, str):
        start = roles.bos if encoder.adds_bos else roles.eos
        return ([] if start is None else [start]), prompt
    if not encoder.tokenizer.chat_template:
        raise ConfigError(
            "a prompt of chat messages needs a chat template, and the tokenizer has none. Set "
            "tokenizer.chat_template, or give prompts of plain text."
        )
    text = encoder.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    marked = encoder.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    special = np.flatnonzero(encoder.bytes.special[marked["input_ids"]])
    if len(special) == 0:
        return [], text
    last = int(special[-1])
    return marked["input_ids"][: last + 1], text[marked["offset_mapping"][last][1] :]


def seam(encoder: TextEncoder, tail: str, response: str) -> int:
    """Locate the end of `tail` in the bytes that the tokens of `tail + response` spell.

    Where the tokenizer's normaliser joins the two (a combining accent at the start of the
    response), the joined bytes belong to the response.
    """
    normalization = encoder.normalization
    prefix = len(normalization.prefix)
    offset = len(tail.encode())
    if not normalization.changes(tail + response):
        return prefix + offset
    for o0, o1, n0, n1 in normalization.pieces(tail + response):
        if o0 <= offset < o1:
            unchanged = o1 - o0 == n1 - n0 and offset > o0
            return prefix + int(n0) + (int(offset - o0) if unchanged else 0)
    return prefix + len(normalization.spelled(tail + response))
