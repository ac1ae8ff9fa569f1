"""What each member of an ensemble is shown: its own rendering of a prompt, in its own tokens.

Axes: B prompts, N members, P longest prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from crosstill.ensemble.vocabulary import CommonVocabulary
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.prompts import Prompt, read
from crosstill.text.encode import TextEncoder

Opening = list[list[int]]
"""A prompt's ids for each member."""


@dataclass(frozen=True)
class Passage:
    """A text that the members continue from prompts of their own, in common tokens.

    Attributes:
        opening: ids of the prompt for each member.
        ids: the pivot's ids of what follows.
        first: index in `ids` of the first token that is scored; 1 where a member has nothing to
            predict token 0 from.
        lead: for each member how many opening tokens stand before every window of a long text.
        num_bytes: bytes that are scored.
    """

    opening: Opening
    ids: list[int]
    first: int
    lead: list[int]
    num_bytes: int


def openings(
    encoders: Sequence[TextEncoder],
    prompts: Sequence[Prompt],
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Opening]:
    """Render each prompt for each member.

    Raises:
        ConfigError: messages, but a member has no chat template; or nothing to begin with.
        DataError: a text cannot be spelled by a tokenizer.
    """
    return [_opening(encoders, prompt, chat_template_kwargs) for prompt in prompts]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Int64[Tensor, "B P"], Int64[Tensor, "B P"]]:
    """Put rows of ids flush right, and say where they are.

    Example:
        >>> left_padded([[7], [8, 9]])
        (tensor([[0, 7],
                [8, 9]]), tensor([[0, 1],
                [1, 1]]))
    """
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, length - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[k, length - len(row) :] = 1
    return ids, mask


def stacked(found: Sequence[Opening]) -> tuple[Int64[Tensor, "B N P"], Int64[Tensor, "B N P"]]:
    """The prompts of all members as one tensor, flush right, and its mask."""
    members = len(found[0])
    ids, mask = left_padded([row for opening in found for row in opening])
    return ids.view(len(found), members, -1), mask.view(len(found), members, -1)


def passage(
    encoders: Sequence[TextEncoder],
    vocabulary: CommonVocabulary,
    prompt: Prompt,
    response: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Passage:
    """Cut a prompt and its response into each member's prompt and common tokens.

    Prompt and response are one text where all members then write the response with the same
    tokens, as `crosstill.evaluation.bits_per_byte.score` has it. Otherwise the response is cut by
    itself, in the pivot's tokens; those that a member lacks are spelled by shorter ones.

    Raises:
        ConfigError: messages, but a member has no chat template; or nothing to begin with.
        DataError: a text cannot be spelled by the tokens that all members have.
    """
    readings = [read(prompt, response, encoder, chat_template_kwargs) for encoder in encoders]
    pivot = readings[0]
    ids = pivot.ids[pivot.first :]
    lead = [reading.lead for reading in readings]
    if not ids:
        return Passage([reading.ids for reading in readings], [], 0, lead, 0)
    if _in_common(ids, vocabulary):
        tails = [member.reading[ids].tolist() for member in vocabulary.members]
        whole = [
            reading.ids[-len(ids) :] == tail for reading, tail in zip(readings, tails, strict=True)
        ]
        if all(whole):
            opening = [reading.ids[: -len(ids)] for reading in readings]
            return _begun(encoders[0], opening, ids, lead, pivot.num_bytes)
    ids = respelled(_continuation(encoders[0], prompt, response), encoders[0], vocabulary)
    opening = [read(prompt, "", encoder, chat_template_kwargs).ids for encoder in encoders]
    return _begun(encoders[0], opening, ids, lead, len(response.encode()))


def respelled(ids: Sequence[int], pivot: TextEncoder, vocabulary: CommonVocabulary) -> list[int]:
    """The same bytes in tokens that every member has: longer ones first, from the left.

    Raises:
        DataError: some bytes have no common token.
    """
    if _in_common(ids, vocabulary):
        return list(ids)
    table = {pivot.bytes.token(id): id for id in np.flatnonzero(vocabulary.writable).tolist()}
    longest = max(map(len, table))
    found: list[int] = []
    for id in ids:
        if vocabulary.writable[id]:
            found.append(id)
            continue
        data = pivot.bytes.token(id)
        while data:
            size = next((n for n in range(longest, 0, -1) if data[:n] in table), 0)
            if not size:
                raise DataError(
                    f"the bytes {data[:20]!r} have no token that all models share: leave the text "
                    f"out, or bring the models to one vocabulary with `crosstill transfer`"
                )
            found.append(table[data[:size]])
            data = data[size:]
    return found


def _opening(
    encoders: Sequence[TextEncoder], prompt: Prompt, kwargs: Mapping[str, Any] | None
) -> Opening:
    found = [read(prompt, "", encoder, kwargs).ids for encoder in encoders]
    if not all(found):
        raise ConfigError(
            "expected a prompt with at least one token for each model, got an empty one for model "
            f"{[bool(ids) for ids in found].index(False) + 1} (its tokenizer has no "
            "beginning-of-text and no end-of-text token): give a prompt that is not empty"
        )
    return found


def _in_common(ids: Sequence[int], vocabulary: CommonVocabulary) -> bool:
    return bool(vocabulary.writable[list(ids)].all())


def _begun(
    pivot: TextEncoder, opening: Opening, ids: list[int], lead: list[int], num_bytes: int
) -> Passage:
    """A passage; where a member has nothing before the first token, that one is not scored."""
    if all(opening):
        return Passage(opening, ids, 0, lead, num_bytes)
    left = max(num_bytes - int(pivot.bytes.lengths[ids[0]]), 0)
    return Passage(opening, ids, 1, lead, left)


def _continuation(encoder: TextEncoder, prompt: Prompt, response: str) -> list[int]:
    """The pivot's ids of a response that is cut by itself, behind its prompt."""
    prefix = encoder.normalization.prefix_of(response)
    if not prefix or prompt == "":
        return encoder.encode(response)
    # Behind a line break no tokenizer takes the response's beginning for a text's.
    ids = encoder.encode("\n" + response)
    ends = encoder.bytes.ends(ids)
    seam = int(ends[-1]) - len(encoder.normalization.spelled(response))
    if seam not in ends:
        raise DataError(
            f"the response {response[:60]!r} cannot be cut from its prompt in the tokens of the "
            f"first model: put another model first, or leave the row out"
        )
    return ids[int(np.searchsorted(ends, seam, side="right")) :]
