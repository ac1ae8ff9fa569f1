"""What an ensemble makes of texts: nats of each, in windows, without the logits of a whole batch.

Every member runs once over its own tokens. The output matrices then work on a block of rows at a
time, and a block of all members is mixed as soon as it is there.

Axes: B sequences, T tokens, R scored tokens of a batch, V ids of the pivot.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.ensemble.members import LockStepMember
from crosstill.ensemble.mixing import mixed_logprobs, mixed_token_logprobs
from crosstill.ensemble.prompts import Opening, Passage, passage, stacked
from crosstill.evaluation.bits_per_byte import MAX_LENGTH, TOKENS_PER_BATCH, Scores
from crosstill.evaluation.prompts import Prompt
from crosstill.evaluation.scoring import Sequence as Indices
from crosstill.evaluation.scoring import evaluating, windows
from crosstill.functional.head import BLOCK_BYTES, row_logits
from crosstill.heads import HeadSplit

if TYPE_CHECKING:
    from crosstill.ensemble.model import Ensemble

_STRIP_BYTES = 2**20  # of float32 logits that are summed at a time on a CPU


@dataclass(frozen=True)
class GreedyScores(Scores):
    """What an ensemble makes of texts.

    Attributes:
        greedy: whether each scored token of a text was the most likely one, bool `[N]`; only where
            it was asked for.
    """

    greedy: np.ndarray | None = None


@dataclass(frozen=True)
class _Window:
    """A stretch of a text.

    Attributes:
        text: which text.
        opening: for each member what it reads before.
        ids: the pivot's ids.
        first: index of the first one that is scored here.
    """

    text: int
    opening: Opening
    ids: list[int]
    first: int

    def __len__(self) -> int:
        """Tokens of the member that reads most."""
        return max(map(len, self.opening)) + len(self.ids)


def score(
    ensemble: "Ensemble",
    texts: Sequence[str | tuple[Prompt, str]],
    *,
    greedy: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> GreedyScores:
    """Compute nats and bytes of texts, or of responses given their prompts.

    What is counted is what `crosstill.evaluation.bits_per_byte` counts; for an ensemble of one
    model the numbers are the same.

    Args:
        ensemble: who reads.
        texts: plain texts, or pairs of a prompt (text or chat messages) and a response.
        greedy: also say whether each text is what greedy search would have written.
        chat_template_kwargs: arguments of the chat templates.
        max_length: longest window in tokens, None for 2048 (or 8192 bytes); the members' own limits
            hold as well.
        tokens_per_batch: padded tokens that run at a time; memory grows with it.

    Raises:
        ConfigError: messages, but a member has no chat template.
        DataError: a text cannot be spelled by the tokens that all members have.
    """
    encoders, common = ensemble.encoders, ensemble.common
    pairs = [("", text) if isinstance(text, str) else text for text in texts]
    found = [
        passage(encoders, common, prompt, response, chat_template_kwargs)
        for prompt, response in pairs
    ]
    asked = max_length or max(encoder.budget(MAX_LENGTH) for encoder in encoders)
    limit = min(asked, ensemble.config.max_position_embeddings or asked)
    cut = [window for k, one in enumerate(found) for window in _windows(one, k, limit)]
    cut.sort(key=len, reverse=True)
    nats, best = np.zeros(len(found)), np.ones(len(found), bool)
    with ExitStack() as modes:
        for model in ensemble.models:
            modes.enter_context(evaluating(model))
        for window, logprob, most in _scored(ensemble, cut, greedy, tokens_per_batch):
            nats[window.text] -= logprob
            best[window.text] &= most
    sizes = np.array([one.num_bytes for one in found], dtype=np.int64)
    return GreedyScores(nats, sizes, best if greedy else None)


def _windows(one: Passage, text: int, limit: int) -> Iterator[_Window]:
    """Cut a passage as `scoring.windows` cuts the pivot's ids; the others get as much prompt."""
    own = len(one.opening[0])
    # Members with longer prompts need room for them.
    limit -= max(len(opening) - own for opening in one.opening)
    places = Indices(list(range(own + len(one.ids))), own + one.first, one.lead[0])
    for window in windows(places, limit):
        behind = [place - own for place in window.ids if place >= own]
        shown = len(window.ids) - len(behind)
        opening = [
            ids if shown == own else _tail(ids, lead, shown - one.lead[0])
            for ids, lead in zip(one.opening, one.lead, strict=True)
        ]
        ids = one.ids[behind[0] : behind[-1] + 1]
        yield _Window(text, opening, ids, window.first - shown)


def _tail(opening: list[int], lead: int, size: int) -> list[int]:
    """The opening token, and the last `size` of what stands behind it."""
    return [*opening[:lead], *opening[max(len(opening) - size, lead) :]]


def _scored(
    ensemble: "Ensemble", cut: list[_Window], greedy: bool, tokens_per_batch: int
) -> Iterator[tuple[_Window, float, bool]]:
    """Each window with its log-probability in nats, and whether greedy search writes it."""
    readings = [
        _Reading(member, place)
        for place, (member, weight) in enumerate(
            zip(ensemble.members, ensemble.weights, strict=True)
        )
        if weight and isinstance(member, LockStepMember)
    ]
    if len(readings) < sum(weight > 0 for weight in ensemble.weights):
        for window in cut:  # some member reads the text anew at every token
            yield window, *_stepped(ensemble, window)
        return
    start = 0
    while start < len(cut):
        batch = cut[start : start + max(tokens_per_batch // len(cut[start]), 1)]
        start += len(batch)
        logprob, most = _batch(ensemble, readings, batch, greedy)
        sizes = [len(window.ids) - window.first for window in batch]
        parts = zip(batch, logprob.split(sizes), most.split(sizes), strict=True)
        for window, values, hits in parts:
            yield window, float(values.double().sum()), bool(hits.all())


class _Reading:
    """A member's output rows for the scored tokens of a batch, block by block."""

    def __init__(self, member: LockStepMember, place: int) -> None:
        self._member = member
        self._place = place
        self._split = member.split

    def rows(self, batch: list[_Window]) -> Float[Tensor, "R D"]:
        """What enters the head, or the logits of a model whose head cannot be split off."""
        ids, mask, row, column = self._padded(batch)
        device = self._member.model.device
        ids, mask = ids.to(device), mask.to(device)
        if isinstance(self._split, HeadSplit):
            found = self._split.hidden(self._member.model, ids, mask)
        else:
            found = self._member.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found[row.to(device), column.to(device)]

    def logits(self, rows: Float[Tensor, "R D"]) -> Float[Tensor, "R V"]:
        """The logits of some rows over the pivot's ids."""
        whole = row_logits(rows, self._split) if isinstance(self._split, HeadSplit) else rows
        return self._member.columns(whole)

    def _padded(self, batch: list[_Window]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids and mask, padded on the right, and the places before each scored token."""
        length = max(len(w.opening[self._place]) + len(w.ids) for w in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        scored = torch.zeros(len(batch), length, dtype=torch.bool)
        for row, window in enumerate(batch):
            opening = window.opening[self._place]
            end = len(opening) + len(window.ids)
            ids[row, : len(opening)] = torch.tensor(opening, dtype=torch.long)
            ids[row, len(opening) : end] = self._member.own_ids(torch.tensor(window.ids))
            mask[row, :end] = 1
            scored[row, len(opening) + window.first - 1 : end - 1] = True
        row, column = scored.nonzero(as_tuple=True)
        return ids, mask, row, column


def _batch(
    ensemble: "Ensemble", readings: list[_Reading], batch: list[_Window], greedy: bool
) -> tuple[Float[Tensor, " R"], Bool[Tensor, " R"]]:
    """Log-probabilities of the scored tokens of a batch, in nats, and which are the likeliest."""
    target = torch.tensor([id for w in batch for id in w.ids[w.first :]], device=ensemble.device)
    rows = [reading.rows(batch) for reading in readings]
    found = []
    for block in _slices(len(target), BLOCK_BYTES, ensemble.common.size):
        logits = [
            reading.logits(one[block]).to(ensemble.device)
            for reading, one in zip(readings, rows, strict=True)
        ]
        # A product is quick where it is large, a sum over the vocabulary where it fits the cache.
        size = _STRIP_BYTES if ensemble.device.type == "cpu" else BLOCK_BYTES
        for strip in _slices(len(logits[0]), size, ensemble.common.size):
            strips = [row[strip] for row in logits]
            found.append(_strip(ensemble, strips, target[block][strip], greedy))
    logprob, most = zip(*found, strict=True)
    return torch.cat(logprob).cpu(), torch.cat(most).cpu()


def _strip(
    ensemble: "Ensemble", logits: list[Tensor], target: Tensor, greedy: bool
) -> tuple[Float[Tensor, " R"], Bool[Tensor, " R"]]:
    """The same of a few rows, from the members' logits."""
    weights = [weight for weight in ensemble.weights if weight]
    if not greedy:
        logprob = mixed_token_logprobs(logits, weights, ensemble.mix, target)
        return logprob, torch.ones_like(target, dtype=torch.bool)
    mixed = mixed_logprobs(logits, weights, ensemble.mix)
    return mixed.gather(-1, target[:, None])[:, 0], mixed.argmax(-1) == target


def _slices(rows: int, size: int, columns: int) -> Iterator[slice]:
    """Slices of rows of float32 numbers of about `size` bytes each."""
    step = max(size // (4 * columns), 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _stepped(ensemble: "Ensemble", window: _Window) -> tuple[float, bool]:
    """One token after the other, through the cache: what members that read again need."""
    ids = torch.tensor([window.ids], device=ensemble.device)
    cache, total, most = None, 0.0, True
    if all(window.opening):
        own, mask = stacked([window.opening])
        output = ensemble(
            input_ids=own[:, 0].to(ensemble.device),
            use_cache=True,
            prompt_ids=own.to(ensemble.device),
            prompt_mask=mask.to(ensemble.device),
        )
    else:
        output = None
    for place, id in enumerate(window.ids):
        if place >= window.first and output is not None:
            row = output.logits[0, -1]
            total += float(row[id])
            most &= int(row.argmax()) == id
        if place == len(window.ids) - 1:
            break
        cache = None if output is None else output.past_key_values
        output = ensemble(ids[:, place : place + 1], past_key_values=cache, use_cache=True)
    return total, most
