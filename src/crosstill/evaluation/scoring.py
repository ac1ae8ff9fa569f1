"""Nats of token sequences: the part that runs a model.

Where the model's head can be split off, the logits of a batch never stand in memory as a whole.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from crosstill.errors import ConfigError
from crosstill.functional.fused import head_logprobs
from crosstill.functional.scores import token_logprobs
from crosstill.heads import HeadSplit, split_head


@dataclass(frozen=True)
class Sequence:
    """Token ids of which those from `first` on are scored, each given all before it.

    Attributes:
        ids: tokens; the first `lead` of them (a beginning-of-text token) open every window.
        first: index of the first scored token, at least 1: position 0 has no likelihood.
        lead: how many opening tokens each window of a long sequence repeats.
    """

    ids: list[int]
    first: int
    lead: int = 0


def windows(sequence: Sequence, limit: int) -> list[Sequence]:
    """Cut a sequence into windows of at most `limit` tokens that score each token exactly once.

    Consecutive windows overlap by half, so that every scored token has about `limit / 2` tokens of
    context at least, or all there are. Each window opens with the lead: many models put much of
    their attention on the beginning-of-text token and are lost without it.
    """
    if limit < 2:
        raise ConfigError(f"a window of at least 2 tokens is needed to score one, got {limit}")
    ids, first, lead = sequence.ids, sequence.first, sequence.lead
    if len(ids) <= limit:
        return [sequence] if first < len(ids) else []
    room = limit - lead  # body tokens in a window
    found: list[Sequence] = []
    start, scored = lead, max(first, lead)
    while scored < len(ids):
        end = min(start + room, len(ids))
        if end > scored:
            # at a window's start without a lead, the first token would have no context
            offset = max(lead + scored - start, 1)
            found.append(Sequence([*ids[:lead], *ids[start:end]], offset, lead))
            scored = end
        start += max(room // 2, 1)
    return found


def sequence_nats(
    model: nn.Module,
    sequences: list[Sequence],
    *,
    vocab_size: int,
    max_length: int,
    tokens_per_batch: int,
) -> np.ndarray:
    """Sum -log p over the scored tokens of each sequence, in nats, float64 `[N]`.

    Rows of the head beyond `vocab_size` belong to no token and get no probability. The softmax is
    taken in float32 whatever the type of the weights.

    Args:
        model: a causal language model; it is run in evaluation mode and left as it was.
        sequences: what to score.
        vocab_size: number of token ids of the tokenizer.
        max_length: window length in tokens.
        tokens_per_batch: padded tokens that run at a time.
    """
    pieces = [(i, w) for i, s in enumerate(sequences) for w in windows(s, max_length)]
    pieces.sort(key=lambda piece: len(piece[1].ids), reverse=True)
    nats = np.zeros(len(sequences))
    with evaluating(model):
        split = split_head(model)
        for batch in padded_batches(pieces, tokens_per_batch):
            values = _batch_nats(model, split, [w for _, w in batch], vocab_size)
            for (index, _), value in zip(batch, values, strict=True):
                nats[index] += value
    return nats


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode without gradients, and put its mode back.

    Blocks that were compiled for training run as they are: each length of a key-value cache would
    be compiled anew.
    """
    with eval_mode(model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode (no dropout), and its mode back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which a model takes its token ids."""
    return next(model.parameters()).device


class HasIds(Protocol):
    """Something that a model reads."""

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        ...


Read = TypeVar("Read", bound=HasIds)


def padded_batches(
    pieces: list[tuple[int, Read]], tokens_per_batch: int
) -> Iterator[list[tuple[int, Read]]]:
    """Group pieces, longest first, so that each padded batch stays within the budget.

    Args:
        pieces: with a number each, sorted by length, the longest first.
        tokens_per_batch: padded tokens at most; a piece that is longer goes alone.
    """
    start = 0
    while start < len(pieces):
        rows = max(tokens_per_batch // len(pieces[start][1].ids), 1)
        yield pieces[start : start + rows]
        start += rows


def _batch_nats(
    model: nn.Module, split: HeadSplit | str, batch: list[Sequence], vocab_size: int
) -> list[float]:
    """Score one padded batch."""
    length = max(len(s.ids) for s in batch)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    scored = torch.zeros(len(batch), length, dtype=torch.bool)
    for row, sequence in enumerate(batch):
        input_ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        scored[row, sequence.first : len(sequence.ids)] = True
    device = device_of(model)
    input_ids, mask, scored = input_ids.to(device), mask.to(device), scored.to(device)
    if isinstance(split, HeadSplit):
        logprob, _ = head_logprobs(
            split.hidden(model, input_ids, mask),
            split.weight,
            input_ids,
            None,
            bias=split.bias,
            logit_scale=split.logit_scale,
            softcap=split.softcap,
            vocab_size=vocab_size,
            needed=scored.roll(-1, dims=1),  # the row before a token predicts it
        )
    else:
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        logprob = token_logprobs(logits, input_ids, vocab_size=vocab_size)
    return (-logprob.double()).masked_fill(~scored, 0.0).sum(1).tolist()
