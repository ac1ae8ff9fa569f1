"""From a member's logits to logits over the pivot's ids.

Axes: V ids of the pivot, Vm rows of the member that are tokens.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from crosstill.ensemble.vocabulary import CommonVocabulary, MemberTokens
from crosstill.functional.numerics import accumulation_dtype


class Columns:
    """Brings a member's logits to the pivot's ids.

    Ids that cannot be written are -inf, and all tokens that end a turn or a text count for one.
    For `identical` vocabularies nothing is copied.
    """

    def __init__(self, vocabulary: CommonVocabulary, member: MemberTokens) -> None:
        """Prepares the tables."""
        self._size = vocabulary.size
        self._plain = vocabulary.kind == "identical"
        self._end = vocabulary.pooled_end
        reading = torch.from_numpy(member.reading)
        self._index = reading.clamp(min=0)
        self._hidden = torch.from_numpy(~vocabulary.writable | (member.reading < 0))
        self._ends = torch.tensor(member.ends, dtype=torch.long)

    def __call__(self, logits: Float[Tensor, "*rows Vm"]) -> Float[Tensor, "*rows V"]:
        """The logits of the pivot's ids; a constant of a row may be missing."""
        if self._plain:
            return logits[..., : self._size]
        if self._index.device != logits.device:
            self._index = self._index.to(logits.device)
            self._hidden = self._hidden.to(logits.device)
            self._ends = self._ends.to(logits.device)
        found = logits.index_select(-1, self._index).to(accumulation_dtype(logits))
        found.masked_fill_(self._hidden, -torch.inf)
        if self._end is not None:
            # Without a token for it the sum of nothing is -inf: this member never ends.
            ends = logits.index_select(-1, self._ends).to(found.dtype)
            found[..., self._end] = ends.logsumexp(-1)
        return found


class MinedColumns:
    """Carries the distribution of a member with other tokens over to the pivot's nearest tokens.

    The probability of each token counts for the one that `MemberTokens.mined` names. A token of the
    pivot that none counts for gets the probability of the member's token nearest to it; so every
    token can be written, and the sum is a little above one.

    Attributes:
        size: V.
        rows: Vm.
    """

    def __init__(self, vocabulary: CommonVocabulary, member: MemberTokens) -> None:
        """Prepares the tables."""
        if member.mined is None or member.nearest is None:
            raise ValueError("expected the maps of a member with other tokens")
        self.size, self.rows = vocabulary.size, len(member.mined)
        target = np.where(member.mined < self.size, member.mined, -1)
        if vocabulary.pooled_end is not None:
            # The pivot's counterpart may be another of its ends.
            target[list(member.ends)] = vocabulary.pooled_end
        left = vocabulary.writable & (member.nearest >= 0) & (member.nearest < self.rows)
        left[target[target >= 0]] = False
        self._tables = [
            torch.from_numpy(np.where(target < 0, self.size, target)),
            torch.from_numpy(np.flatnonzero(left)),
            torch.from_numpy(member.nearest[left]),
            torch.from_numpy(~vocabulary.writable),
        ]

    def __call__(self, logits: Float[Tensor, " Vm"]) -> Float[Tensor, " V"]:
        """The logarithms of the pivot's masses, in nats; their sum is not one."""
        if self._tables[0].device != logits.device:
            self._tables = [table.to(logits.device) for table in self._tables]
        target, left, nearest, hidden = self._tables
        mine = logits.to(accumulation_dtype(logits)).softmax(-1)
        mass = mine.new_zeros(self.size + 1).index_add_(0, target, mine)
        mass[left] = mine[nearest]
        return mass[: self.size].log().masked_fill_(hidden, -torch.inf)
