"""What a teacher says about a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.fused import head_logprobs
from crosstill.functional.head import HeadMatrix, row_logits
from crosstill.functional.scores import boundary_logmass, token_logprobs


@dataclass(frozen=True)
class TokenSignal:
    """Two numbers for each teacher token, without a graph.

    Attributes:
        logprob: `[B, Tt]` nats, log p(token t | tokens before t); 0.0 at position 0.
        boundary: `[B, Tt]` nats, log of the probability mass, after token t, of the tokens that
            begin with a boundary byte (space, tab, newline) or are special.
        vocab_size: ids that the teacher's tokenizer knows.
    """

    logprob: Float[Tensor, "B Tt"]
    boundary: Float[Tensor, "B Tt"]
    vocab_size: int = 0

    @property
    def hidden(self) -> Tensor:
        """Not known.

        Raises:
            ConfigError: always.
        """
        raise _missing("hidden states")

    @property
    def layers(self) -> Mapping[int, Tensor]:
        """Not known.

        Raises:
            ConfigError: always.
        """
        raise _missing("hidden states")

    def rows(self, row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]) -> Tensor:
        """Not known.

        Raises:
            ConfigError: always.
        """
        raise _missing("logits")


class StateSignal:
    """A teacher's hidden states, from which everything else is made when it is asked for.

    Args:
        hidden: What enters the head.
        head: Without surplus rows.
        input_ids: The teacher's tokens.
        needed: False where there is padding.
        boundary_mask: The ids that begin with a boundary byte or are special.
        layers: Hidden states by index.
    """

    def __init__(
        self,
        hidden: Float[Tensor, "B Tt D"],
        head: HeadMatrix,
        input_ids: Int64[Tensor, "B Tt"],
        needed: Bool[Tensor, "B Tt"],
        boundary_mask: Bool[Tensor, " Vt"],
        layers: Mapping[int, Tensor] | None = None,
    ) -> None:
        self.hidden = hidden
        self.layers: Mapping[int, Tensor] = layers or {}
        self._head, self._ids, self._needed, self._mask = head, input_ids, needed, boundary_mask

    @property
    def vocab_size(self) -> int:
        """Ids that the teacher's tokenizer knows."""
        return self._head.weight.shape[0]

    @property
    def logprob(self) -> Float[Tensor, "B Tt"]:
        """As in `TokenSignal`."""
        return self._scores[0]

    @property
    def boundary(self) -> Float[Tensor, "B Tt"]:
        """As in `TokenSignal`."""
        return self._scores[1]

    @cached_property
    def _scores(self) -> tuple[Tensor, Tensor]:
        return head_logprobs(
            self.hidden,
            self._head.weight,
            self._ids,
            self._mask,
            bias=self._head.bias,
            logit_scale=self._head.logit_scale,
            softcap=self._head.softcap,
            needed=self._needed,
        )

    @torch.no_grad()
    def rows(
        self, row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N Vt"]:
        """Makes the logits at these positions."""
        return row_logits(self.hidden[row, position], self._head)


class LogitSignal:
    """A teacher's logits as a whole, where its head cannot be split from its body.

    Args:
        logits: Without surplus columns.
        input_ids: The teacher's tokens.
        boundary_mask: The ids that begin with a boundary byte or are special.
        layers: Hidden states by index.
    """

    def __init__(
        self,
        logits: Float[Tensor, "B Tt Vt"],
        input_ids: Int64[Tensor, "B Tt"],
        boundary_mask: Bool[Tensor, " Vt"],
        layers: Mapping[int, Tensor] | None = None,
    ) -> None:
        self._logits, self._ids, self._mask = logits, input_ids, boundary_mask
        self.layers: Mapping[int, Tensor] = layers or {}

    @property
    def vocab_size(self) -> int:
        """Ids that the teacher's tokenizer knows."""
        return self._logits.shape[-1]

    @property
    def hidden(self) -> Tensor:
        """Not known: the head could not be split from the body.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "this objective reads what enters the teacher's head, but that head cannot be split "
            "from its body (the log says why). Choose an objective that does not need it"
        )

    @property
    def logprob(self) -> Float[Tensor, "B Tt"]:
        """As in `TokenSignal`."""
        return self._token_logprob

    @property
    def boundary(self) -> Float[Tensor, "B Tt"]:
        """As in `TokenSignal`."""
        return self._boundary_logmass

    @cached_property
    def _token_logprob(self) -> Float[Tensor, "B Tt"]:
        return token_logprobs(self._logits, self._ids)

    @cached_property
    def _boundary_logmass(self) -> Float[Tensor, "B Tt"]:
        return boundary_logmass(self._logits, self._mask)

    def rows(
        self, row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N Vt"]:
        """Takes the logits at these positions."""
        return self._logits[row, position]


def _missing(what: str) -> ConfigError:
    return ConfigError(
        f"this objective reads the teacher's {what}, but this teacher gives the log-probabilities "
        "of its tokens alone. Use a teacher of this process, or an objective that needs less "
        "(`crosstill methods` says what each needs)"
    )
