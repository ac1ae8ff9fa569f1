"""How one member of an ensemble is asked what comes next.

A member that has the pivot's tokens reads them as they come, in lock-step with the others, with a
key-value cache and a prompt of its own. A member that has not (vocabulary `mined`) reads the text
so far again in its own tokens, and its prediction is carried over to the pivot's.

Axes: B sequences, T tokens, P prompt tokens, V ids of the pivot.
"""

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import Cache, PreTrainedModel

from crosstill.ensemble.columns import Columns, MinedColumns
from crosstill.ensemble.reading import Reader, last_row_only
from crosstill.ensemble.respelling import Respeller
from crosstill.ensemble.vocabulary import CommonVocabulary, MemberTokens
from crosstill.errors import ConfigError
from crosstill.heads import HeadSplit, split_head


@dataclass
class MemberState:
    """What a member remembers between two steps.

    Attributes:
        cache: its keys and values.
        mask: int64 [B, T], 1 where it read a token; None while there is no padding.
        rows: for a member that reads again: its own prompt's ids, the pivot's ids since, and its
            reader, for each sequence.
    """

    cache: Cache | None = None
    mask: Tensor | None = None
    rows: list[tuple[list[int], list[int], Reader]] = field(default_factory=list)

    def reorder(self, index: Int64[Tensor, " B"]) -> None:
        """Let each sequence go on from another one (beam search)."""
        if self.rows:
            raise ConfigError(
                "expected greedy search or sampling with the vocabulary 'mined', got beam search: "
                "its members keep one text a sequence"
            )
        if self.cache is not None:
            self.cache.reorder_cache(index)  # type: ignore[arg-type]
        if self.mask is not None:
            self.mask = self.mask.index_select(0, index.to(self.mask.device))


class Member(ABC):
    """One model of an ensemble."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Takes a causal language model."""
        self.model = model

    @abstractmethod
    def step(
        self,
        state: MemberState,
        input_ids: Int64[Tensor, "B T"],
        mask: Int64[Tensor, "B T"] | None,
        *,
        last: bool,
        use_cache: bool,
    ) -> Float[Tensor, "B T V"]:
        """Read more of the common tokens.

        Args:
            state: what was read before; changed in place.
            input_ids: the pivot's ids.
            mask: 1 where there is a token; None: everywhere.
            last: only the last row of logits is wanted.
            use_cache: whether a further step will come.

        Returns:
            Logits over the pivot's ids.
        """

    @abstractmethod
    def begin(
        self, state: MemberState, prompt_ids: Int64[Tensor, "B P"], mask: Int64[Tensor, "B P"]
    ) -> Float[Tensor, "B 1 V"]:
        """Read the member's own prompts, flush right; logits of what follows them."""


class LockStepMember(Member):
    """A member that has the pivot's tokens."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: CommonVocabulary, tokens: MemberTokens
    ) -> None:
        """Prepares the maps."""
        super().__init__(model)
        self.columns = Columns(vocabulary, tokens)
        self._plain = vocabulary.kind == "identical"
        self._reading = torch.from_numpy(tokens.reading)
        self._last_row_only = last_row_only(model)
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @cached_property
    def split(self) -> HeadSplit | str:
        """The model's head apart from its body, or why it cannot be; found out once."""
        return split_head(self.model)

    def step(self, state, input_ids, mask, *, last, use_cache):
        """As `Member.step`."""
        ids = self.own_ids(input_ids)
        if mask is not None and mask.shape[1] < ids.shape[1]:
            raise ConfigError("expected a mask as long as the tokens")
        return self.columns(self._run(state, ids, mask, last, use_cache))

    def begin(self, state, prompt_ids, mask):
        """As `Member.begin`."""
        return self.columns(self._run(state, prompt_ids, mask, True, True))

    def own_ids(self, input_ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
        """The member's ids of the pivot's; 0 where it has none, which only padding may be."""
        if self._plain:
            return input_ids
        if self._reading.device != input_ids.device:
            self._reading = self._reading.to(input_ids.device)
        return self._reading[input_ids].clamp(min=0)

    def _run(
        self,
        state: MemberState,
        ids: Tensor,
        mask: Tensor | None,
        last: bool,
        use_cache: bool,
    ) -> Tensor:
        device = self.model.device
        more: dict[str, Any] = self._last_row_only if last else {}
        state.mask = _longer(state.mask, mask, ids, state.cache)
        if state.mask is not None:
            state.mask = state.mask.to(device)
            more = more | {"attention_mask": state.mask}
            if self._takes_positions:
                places = state.mask.cumsum(-1)[:, -ids.shape[1] :] - 1
                more = more | {"position_ids": places.clamp(min=0)}
        output = self.model(
            input_ids=ids.to(device), past_key_values=state.cache, use_cache=use_cache, **more
        )
        state.cache = output.past_key_values if use_cache else None
        return output.logits[:, -1:] if last else output.logits


class RereadingMember(Member):
    """A member with other tokens: it reads the text so far again, one sequence at a time.

    Each step costs a forward pass a sequence. What agrees with the ids read before is kept in the
    key-value cache, so that a step reads a token or two.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: CommonVocabulary,
        tokens: MemberTokens,
        respeller: Respeller,
    ) -> None:
        """Prepares the maps."""
        super().__init__(model)
        self.columns = MinedColumns(vocabulary, tokens)
        self._respeller = respeller

    def begin(self, state, prompt_ids, mask):
        """As `Member.begin`."""
        state.rows = [
            (ids[here.bool()].tolist(), [], Reader(self.model, self.columns.rows))
            for ids, here in zip(prompt_ids, mask, strict=True)
        ]
        return torch.stack([self._next(*row) for row in state.rows])[:, None]

    def step(self, state, input_ids, mask, *, last, use_cache):
        """As `Member.step`."""
        if not state.rows:
            state.rows = [([], [], Reader(self.model, self.columns.rows)) for _ in input_ids]
        masks = torch.ones_like(input_ids) if mask is None else mask[:, -input_ids.shape[1] :]
        found = []
        for (prompt, read, reader), ids, here in zip(
            state.rows, input_ids.tolist(), masks.tolist(), strict=True
        ):
            rows = []
            for place, (id, real) in enumerate(zip(ids, here, strict=True)):
                if real:
                    read.append(id)
                if not last or place == len(ids) - 1:
                    rows.append(self._next(prompt, read, reader))
            found.append(torch.stack(rows))
        return torch.stack(found)

    def _next(self, prompt: list[int], read: list[int], reader: Reader) -> Float[Tensor, " V"]:
        ids = self._respeller.ids(prompt, read)
        if not ids:  # padding on the left: nothing was read, and nobody asks
            return torch.zeros(self.columns.size, device=self.model.device)
        return self.columns(reader.logits(ids))


def _longer(
    before: Tensor | None, mask: Tensor | None, ids: Tensor, cache: Cache | None
) -> Tensor | None:
    """The mask of everything read so far; None while nothing is padded."""
    if mask is not None:
        mask = mask[:, -ids.shape[1] :]
    if before is None and (mask is None or bool(mask.all())):
        return None
    if before is None:
        past = 0 if cache is None else cache.get_seq_length()
        before = ids.new_ones(len(ids), past)
    new = torch.ones_like(ids) if mask is None else mask
    return torch.cat([before, new.to(before.device, before.dtype)], dim=1)
