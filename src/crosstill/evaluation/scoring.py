"""Nats of token sequences: the part that runs a model.

Axes: B sequences, T tokens, V vocabulary, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.heads import HeadSplit, split_head

# Rows of logits that exist at a time, in numbers: 2**25 float32 are 128 MiB.
_LOGITS_AT_A_TIME = 2**25


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

    Consecutive windows overlap, so that every scored token has at least `limit // 2` tokens of
    context, or all there are. Each window opens with the lead: many models put much of their
    attention on the beginning-of-text token and are lost without it.
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
        for batch in _batches(pieces, tokens_per_batch):
            values = _batch_nats(model, split, [w for _, w in batch], vocab_size)
            for (index, _), value in zip(batch, values, strict=True):
                nats[index] += value
    return nats


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model in evaluation mode without gradients, and put its mode back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def device_of(model: nn.Module) -> torch.device:
    """Return the device on which a model takes its token ids."""
    return next(model.parameters()).device


def _batches(
    pieces: list[tuple[int, Sequence]], tokens_per_batch: int
) -> Iterator[list[tuple[int, Sequence]]]:
    """Group pieces, longest first, so that each padded batch stays within the budget."""
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
    device = device_of(model)
    input_ids = torch.zeros(len(batch), length, dtype=torch.long)
    mask = torch.zeros(len(batch), length, dtype=torch.long)
    for row, sequence in enumerate(batch):
        input_ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    head = split if isinstance(split, HeadSplit) else None
    if head is not None:
        entering = head.hidden(model, input_ids, mask)
    else:
        entering = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    values = _token_nats(entering[:, :-1], head, input_ids[:, 1:], vocab_size)
    rows = zip(values.double().cpu(), batch, strict=True)
    return [float(row[s.first - 1 : len(s.ids) - 1].sum()) for row, s in rows]


def _token_nats(
    entering: Float[Tensor, "B T D"],
    head: HeadSplit | None,
    target: Int[Tensor, "B T"],
    vocab_size: int,
) -> Float[Tensor, "B T"]:
    """Compute -log p of each target from hidden states (or from logits), block by block."""
    flat = entering.reshape(-1, entering.shape[-1])
    rows = max(_LOGITS_AT_A_TIME // vocab_size, 1)
    blocks = []
    for hidden, ids in zip(flat.split(rows), target.reshape(-1).split(rows), strict=True):
        logits = hidden if head is None else head.logits(hidden)
        logits = logits[:, :vocab_size].float()
        blocks.append(nn.functional.cross_entropy(logits, ids.to(logits.device), reduction="none"))
    return torch.cat(blocks).reshape(target.shape)
