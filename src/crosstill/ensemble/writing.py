"""Texts that an ensemble writes: greedy or sampled, batched, streamed, with stops.

The loop is `transformers`' own; here are a draw that a batch does not change, and texts made of
bytes, so that no character is torn.

Axes: B sequences, T tokens, V vocabulary.
"""

import codecs
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from crosstill.errors import ConfigError
from crosstill.evaluation.prompts import Prompt
from crosstill.text.encode import TextEncoder

if TYPE_CHECKING:
    from crosstill.ensemble.model import Ensemble

OnText = Callable[[int, str], None]
"""Takes the number of a prompt and the next piece of its continuation."""


def write(
    ensemble: "Ensemble",
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int | Sequence[int] = 0,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    on_text: OnText | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write a continuation of each prompt.

    Each sequence draws from random numbers of its own, so a prompt's continuation does not depend
    on what else is in its batch.

    Args:
        ensemble: who writes.
        prompts: plain texts, or lists of chat messages that go through each member's own chat
            template up to where the assistant speaks.
        max_new_tokens: longest continuation in the pivot's tokens.
        temperature: of the mixture; 0 takes the most likely token.
        top_p: the most likely tokens that together have this probability are kept; 1 keeps all.
        top_k: so many of the most likely tokens are kept; 0 keeps all.
        seed: of the draws; a number is counted up from prompt to prompt, or one for each.
        stop: texts that end a continuation and are no part of it.
        batch_size: prompts that run at a time.
        on_text: called with each piece of text as it comes, whole characters at a time; where
            `stop` is given, text that may belong to a stop is held back.
        chat_template_kwargs: arguments of the chat templates.

    Returns:
        The continuations, without the end of turn. Bytes that are no text are replaced by U+FFFD.

    Raises:
        ConfigError: a setting out of range, an empty stop, messages without a chat template, or a
            prompt with nothing to begin from.
        DataError: a prompt cannot be spelled by a tokenizer.
    """
    _check(max_new_tokens, temperature, top_p, top_k, stop, batch_size)
    seeds = [seed + k for k in range(len(prompts))] if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise ConfigError(f"expected a seed for each of {len(prompts)} prompts, got {len(seeds)}")
    found: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        inputs = ensemble.encode(prompts[batch], chat_template_kwargs)
        texts = _Texts(
            ensemble.encoders[0],
            ensemble.common.ends,
            [one.encode() for one in stop],
            len(inputs["input_ids"]),
            None if on_text is None else partial(_shifted, on_text, start),
        )
        ensemble.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the draw is a processor that leaves one token
            logits_processor=_sampling(temperature, top_p, top_k, seeds[batch]),
            stopping_criteria=StoppingCriteriaList([texts]),
        )
        found += texts.texts()
    return found


class Draw(LogitsProcessor):
    """Leaves one token of each row: where a uniform number of the row falls in its distribution.

    One number a row and step, from a generator a row; `torch.multinomial` draws one for each entry
    of the vocabulary, which on a CPU can take longer than a small model's step, and in another
    order for another batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Starts a generator for each row."""
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int64[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Zero for the token drawn, -inf for all others."""
        heights = [torch.rand(1, generator=one, dtype=torch.float64) for one in self._generators]
        cumulative = scores.double().softmax(-1).cumsum(-1)
        height = torch.stack(heights).to(cumulative.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, height, right=True)
        # Rounding must not lead to a token of probability zero behind the last possible one.
        last = scores.shape[1] - 1 - scores.isfinite().flip(-1).int().argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter_(1, torch.minimum(drawn, last), 0.0)


def _sampling(
    temperature: float, top_p: float, top_k: int, seeds: Sequence[int]
) -> LogitsProcessorList:
    """What stands between the mixture and the choice; nothing for the most likely token."""
    if not temperature:
        return LogitsProcessorList()
    processors: list[LogitsProcessor] = []
    if temperature != 1:
        processors.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        processors.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList([*processors, Draw(seeds)])


def _shifted(on_text: OnText, start: int, row: int, text: str) -> None:
    on_text(start + row, text)


class _Texts(StoppingCriteria):
    """Collects what each sequence of a batch says, and stops those that said enough."""

    def __init__(
        self,
        encoder: TextEncoder,
        ends: Sequence[int],
        stops: Sequence[bytes],
        rows: int,
        on_text: OnText | None,
    ) -> None:
        self._encoder = encoder
        self._ends = frozenset(ends)
        self._stops = stops
        self._on_text = on_text
        self._said = [bytearray() for _ in range(rows)]
        self._done = [False] * rows
        self._shown = [0] * rows
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = [decoder(errors="replace") for _ in range(rows)]

    def __call__(
        self, input_ids: Int64[Tensor, "B T"], scores: Any, **kwargs: Any
    ) -> Bool[Tensor, " B"]:
        """Which sequences are done, the last token included."""
        for row, id in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row]:
                self._take(row, id)
        return torch.tensor(self._done, device=input_ids.device)

    def texts(self) -> list[str]:
        """What was said, to the end."""
        for row in range(len(self._said)):
            self._show(row, held=0, final=True)
        return [said.decode(errors="replace") for said in self._said]

    def _take(self, row: int, id: int) -> None:
        if id in self._ends:
            self._done[row] = True
            return
        said = self._said[row]
        searched = len(said)
        said += self._encoder.bytes.token(id)
        places = [said.find(stop, max(searched - len(stop) + 1, 0)) for stop in self._stops]
        places = [place for place in places if place >= 0]
        if places:
            del said[min(places) :]
            self._done[row] = True
        self._show(row, held=_begun(bytes(said), self._stops))

    def _show(self, row: int, *, held: int, final: bool = False) -> None:
        """Hand on what is certain: whole characters, and nothing that may begin a stop."""
        if self._on_text is None:
            return
        end = max(len(self._said[row]) - held, self._shown[row])
        piece = bytes(self._said[row][self._shown[row] : end])
        self._shown[row] = end
        text = self._decoders[row].decode(piece, final)
        if text:
            self._on_text(row, text)


def _begun(said: bytes, stops: Sequence[bytes]) -> int:
    """How many bytes at the end may be the beginning of a stop."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if said.endswith(stop[:n]))
    return max(lengths, default=0)


def _check(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    stop: Sequence[str],
    batch_size: int,
) -> None:
    """Raise for a setting out of range."""
    wrong = [
        f"{name}: expected {expected}, got {value!r}"
        for name, expected, value, good in (
            ("max_new_tokens", "at least 1", max_new_tokens, max_new_tokens >= 1),
            ("temperature", "at least 0", temperature, 0 <= temperature < math.inf),
            ("top_p", "above 0 and at most 1", top_p, 0 < top_p <= 1),
            ("top_k", "at least 0", top_k, top_k >= 0),
            ("stop", "texts that are not empty", stop, all(stop) and not isinstance(stop, str)),
            ("batch_size", "at least 1", batch_size, batch_size >= 1),
        )
        if not good
    ]
    if wrong:
        raise ConfigError("; ".join(wrong))
