"""Texts that a model writes: plain sampling from its own distribution.

Axes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from crosstill.evaluation.scoring import device_of, evaluating

# A batch holds prompts whose lengths differ by no more than this many tokens.
_LENGTH_SLACK = 32


def sample(
    model: nn.Module,
    openings: list[list[int]],
    *,
    stop: Bool[np.ndarray, " V"],
    max_new_tokens: int,
    seed: int,
    rows_per_batch: int = 32,
) -> list[list[int]]:
    """Continue each prompt by tokens drawn from the model's distribution itself.

    Temperature 1, no top-k, no top-p, no penalty, whatever the model's generation config asks for:
    only then does the average over samples estimate an expectation under the model.

    Not `model.generate`: that one merges the settings which come with the model into the ones
    given. Prompts of one batch need no padding here: they start together as far as the shortest
    one reaches, and the longer ones are fed their own tokens while the others are already drawing.

    Args:
        model: a causal language model with a key-value cache. One that has a `context_length` is
            also given that many ids from before those it reads, as `context_ids`.
        openings: token ids of each prompt, at least one.
        stop: ids that end a text and are not part of it. Ids beyond its length are never drawn.
        max_new_tokens: longest continuation in tokens.
        seed: of the draws; with equal settings the draws are equal on the same machine.
        rows_per_batch: prompts that run at a time.

    Returns:
        The drawn ids of each prompt, without the stopping one.
    """
    device = device_of(model)
    generator = torch.Generator(device=device).manual_seed(seed)
    found: list[list[int]] = [[] for _ in openings]
    short = len(openings) <= rows_per_batch  # nothing to show before it is done
    bar = tqdm(total=len(openings), desc="writing", unit="text", delay=2, disable=short)
    with evaluating(model), bar:
        for rows in _batches([len(ids) for ids in openings], rows_per_batch):
            drawn = _continue(model, [openings[r] for r in rows], stop, max_new_tokens, generator)
            for row, ids in zip(rows, drawn, strict=True):
                found[row] = ids
            bar.update(len(rows))
    return found


def _batches(lengths: list[int], rows_per_batch: int) -> Iterator[list[int]]:
    """Group rows of similar length, in order of length."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        too_long = batch and lengths[row] - lengths[batch[0]] > _LENGTH_SLACK
        if too_long or len(batch) == rows_per_batch:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _continue(
    model: nn.Module,
    prompts: list[list[int]],
    stop: Bool[np.ndarray, " V"],
    max_new_tokens: int,
    generator: torch.Generator,
) -> list[list[int]]:
    """Continue one batch; every row stays at the same position, so no mask is needed."""
    device = device_of(model)
    stop_list = stop.tolist()
    position = min(len(ids) for ids in prompts)
    step = torch.tensor([ids[:position] for ids in prompts], device=device)
    context, needed = step[:, :0], getattr(model, "context_length", 0)
    drawn: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    cache = None
    while True:
        before = {"context_ids": context} if needed else {}
        output = model(input_ids=step, past_key_values=cache, use_cache=True, **before)
        if needed:
            context = torch.cat([context, step], 1)[:, -needed:]
        cache = output.past_key_values
        logits = output.logits[:, -1, : len(stop_list)].float()
        draws = _draw(logits, generator).tolist()
        for row, prompt in enumerate(prompts):
            if position < len(prompt):
                draws[row] = prompt[position]
            elif not done[row]:
                done[row] = stop_list[draws[row]] or len(drawn[row]) + 1 == max_new_tokens
                if not stop_list[draws[row]]:
                    drawn[row].append(draws[row])
        if all(done):
            return drawn
        position += 1
        step = torch.tensor(draws, device=device)[:, None]


def _draw(logits: Float[Tensor, "B V"], generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Draw one id a row: where a uniform number falls in the cumulative distribution.

    One number a row. `torch.multinomial` draws one for each entry of the vocabulary, which on a CPU
    takes longer than the model's own step.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    height = torch.rand(len(logits), 1, generator=generator, device=logits.device).double()
    drawn = torch.searchsorted(cumulative, height * cumulative[:, -1:], right=True)
    return drawn[:, 0].clamp(max=logits.shape[-1] - 1)
