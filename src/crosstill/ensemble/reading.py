"""One model that reads a text which changes at its end, and what it expects next.

A text that grows by a few bytes is often cut into other tokens at its end. What stays the same at
its beginning is not read again: the key-value cache is cut back to where the ids agree.

Axes: V vocabulary.
"""

import inspect
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache, PreTrainedModel


class Reader:
    """Next-token predictions of one model for one token sequence at a time.

    Attributes:
        calls: forward passes so far.
        tokens: tokens that were read in them.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        """Takes a causal language model and how many of its rows are tokens."""
        self.calls = 0
        self.tokens = 0
        self._model = model
        self._vocab_size = vocab_size
        self._ids: list[int] = []
        self._cache: Cache | None = None
        self._last: Tensor | None = None

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Float[Tensor, " V"]:
        """The logits of the token after `ids`, which must not be empty."""
        kept = _agreeing(self._ids, ids)
        if self._last is not None and kept == len(ids) == len(self._ids):
            return self._last
        kept = self._cut(min(kept, len(ids) - 1))
        step = torch.tensor([ids[kept:]], device=self._model.device)
        output = self._model(
            input_ids=step,
            past_key_values=self._cache,
            use_cache=True,
            **last_row_only(self._model),
        )
        self.calls += 1
        self.tokens += len(ids) - kept
        self._cache, self._ids = output.past_key_values, list(ids)
        last = self._last = output.logits[0, -1, : self._vocab_size]
        return last

    def _cut(self, kept: int) -> int:
        """Cut the cache back to `kept` tokens; how many could be kept."""
        surplus = len(self._ids) - kept
        if self._cache is None or not surplus:
            return kept
        try:
            self._cache.crop(-surplus)
        except (RuntimeError, AttributeError, NotImplementedError, ValueError):
            # Sliding windows forget, and states of linear attention cannot go back: read anew.
            self._cache, self._ids = None, []
            return 0
        return kept


def last_row_only(model: PreTrainedModel) -> dict[str, int]:
    """The argument that spares a model the logits of all rows but the last, if it takes one."""
    known = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in known else {}


def _agreeing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common from the left."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
