"""What a teacher says about a batch."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class TokenSignal:
    """Two numbers for each teacher token, without a graph.

    Attributes:
        logprob: `[B, Tt]` nats, log p(token t | tokens before t); 0.0 at position 0.
        boundary: `[B, Tt]` nats, log of the probability mass, after token t, of the tokens that
            begin with a boundary byte (space, tab, newline) or are special.
    """

    logprob: Float[Tensor, "B Tt"]
    boundary: Float[Tensor, "B Tt"]
