"""What the members of an ensemble remember of a text, as one cache of `transformers`."""

from jaxtyping import Int64
from torch import Tensor
from transformers import Cache

from crosstill.ensemble.members import MemberState


class EnsembleCache(Cache):
    """What every member remembers of the text so far.

    Attributes:
        states: one a member; empty ones for members without a vote.
        length: common tokens that were read, the pivot's prompt included.
    """

    def __init__(self, members: int) -> None:
        """Starts empty."""
        super().__init__(layers=[])
        self.states = [MemberState() for _ in range(members)]
        self.length = 0

    def __len__(self) -> int:
        """Members; never nothing, so that an empty cache is not taken for none."""
        return len(self.states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Common tokens that were read."""
        return self.length

    def reorder_cache(self, beam_idx: Int64[Tensor, " B"]) -> None:
        """Let each sequence go on from another one."""
        for state in self.states:
            state.reorder(beam_idx)
