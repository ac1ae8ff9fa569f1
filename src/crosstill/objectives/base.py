"""What every objective is: a published training loss with a name, its needs and its options.

An objective sees tensors only. It never sees a tokenizer, a configuration file, a process group
or a logger. Axes: B sequences, Ts student tokens, Tt teacher tokens, V vocabulary, N rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional.chunk import last_positions
from crosstill.functional.fused import ChunkTerm, LabelTerm
from crosstill.functional.losses import LossSum, supervised_tokens
from crosstill.functional.row_head import RowTerm
from crosstill.functional.scores import row_logmass, row_logprobs
from crosstill.objectives.pair import Pair

PairBatch = Mapping[str, Tensor]
"""A collated batch: student_input_ids, student_labels, student_chunk, teacher_chunk and more."""


class Signal(Protocol):
    """What a teacher gave for a batch, without a graph.

    A teacher gives what the objectives' `needs` name; the rest raises `ConfigError` when it is
    read.
    """

    @property
    def logprob(self) -> Tensor:
        """[B, Tt] nats: log p(token t | tokens before t)."""
        ...

    @property
    def boundary(self) -> Tensor:
        """[B, Tt] nats: log of the mass of boundary tokens after token t."""
        ...

    @property
    def vocab_size(self) -> int:
        """Vt, the ids that the teacher's tokenizer knows."""
        ...

    @property
    def hidden(self) -> Tensor:
        """[B, Tt, Dt]: what enters the teacher's head."""
        ...

    @property
    def layers(self) -> Mapping[int, Tensor]:
        """[B, Tt, Dt] by index of the hidden state; those that an objective asked for."""
        ...

    def rows(self, row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]) -> Tensor:
        """[N, Vt]: the logits at these positions, made when they are asked for."""
        ...


@dataclass(frozen=True)
class StudentStates:
    """The student's hidden states, for objectives that read them.

    Attributes:
        hidden: [B, Ts, Ds], what enters its head.
        layers: [B, Ts, Ds] by index of the hidden state.
    """

    hidden: Float[Tensor, "B Ts Ds"]
    layers: Mapping[int, Tensor] = field(default_factory=dict)


class StudentScores:
    """The student's logits for one batch, and what objectives read from them, each made once.

    Only rows that something supervised reads are taken out of the logits, so no other row gets a
    gradient, and what stands in them (`-inf` and NaN too) has no effect.

    Args:
        logits: [B, Ts, V], raw, in any floating dtype.
        batch: the batch they belong to.
        reads: which tokens' log-probabilities will be read; None means every token that has a
            label or a chunk.
        boundary_mask: bool, one for each id of the student; None if no objective needs it.
        vocab_size: number of ids the student's tokenizer knows; surplus columns are cut.
        states: its hidden states; None if no objective reads them.
    """

    def __init__(
        self,
        logits: Float[Tensor, "B Ts V"],
        batch: PairBatch,
        *,
        reads: Bool[Tensor, "B Ts"] | None = None,
        boundary_mask: Bool[Tensor, " mask"] | None = None,
        vocab_size: int | None = None,
        states: StudentStates | None = None,
    ) -> None:
        labelled = supervised_tokens(batch["student_labels"])
        self._reads = labelled | (batch["student_chunk"] >= 0) if reads is None else reads
        self.logits = logits[..., :vocab_size]
        self._batch = batch
        self._boundary_mask = boundary_mask
        self._states = states

    def rows(
        self, row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N Vs"]:
        """Take the logits of these positions out of the whole."""
        return self.logits[row, position]

    @property
    def hidden(self) -> Float[Tensor, "B Ts Ds"]:
        """What enters the student's head.

        Raises:
            ConfigError: the scores were made without hidden states.
        """
        return self._known_states().hidden

    @property
    def layers(self) -> Mapping[int, Tensor]:
        """Its hidden states by index; those that an objective asked for.

        Raises:
            ConfigError: the scores were made without hidden states.
        """
        return self._known_states().layers

    def _known_states(self) -> StudentStates:
        if self._states is None:
            raise ConfigError(
                "this objective reads the student's hidden states, but none were given; pass "
                "states=StudentStates(hidden) to Mix.from_logits"
            )
        return self._states

    @cached_property
    def token_logprob(self) -> Float[Tensor, "B Ts"]:
        """Nats, of every token that is read; 0.0 elsewhere."""
        row, position = self._reads[:, 1:].nonzero(as_tuple=True)
        target = self._batch["student_input_ids"][row, position + 1]
        scores = row_logprobs(self.logits[row, position], target)
        return self._spread(scores, row, position + 1)

    @cached_property
    def boundary(self) -> Float[Tensor, "B Ts"]:
        """Nats, log-mass of the boundary tokens after every chunk's last token; 0.0 elsewhere.

        Raises:
            ConfigError: the scores were made without a boundary mask.
        """
        if self._boundary_mask is None:
            raise ConfigError(
                "this objective reads the student's boundary mass, but no boundary_mask was given; "
                "pass token_bytes(student_tokenizer).boundary() to Mix"
            )
        chunk = self._batch["student_chunk"]
        end = last_positions(chunk, max(chunk.shape[1], self._batch["teacher_chunk"].shape[1]))
        row, index = (end >= 0).nonzero(as_tuple=True)
        position = end[row, index]
        mask = self._boundary_mask.to(self.logits.device)[: self.logits.shape[-1]]
        return self._spread(row_logmass(self.logits[row, position], mask), row, position)

    def _spread(
        self, scores: Float[Tensor, " N"], row: Int64[Tensor, " N"], position: Int64[Tensor, " N"]
    ) -> Float[Tensor, "B Ts"]:
        empty = scores.new_zeros(self.logits.shape[:2])
        return empty.index_put((row, position), scores)


class Objective(ABC):
    """One published training loss.

    Attributes:
        name: how recipes call it.
        paper: where it was published.
        needs: what it reads of the teacher: "token_logprob", "boundary", "top_k", "logits",
            "hidden"; nothing if it does without one.
        options_type: a frozen dataclass; every field has a default and `metadata["help"]`.
        cost: one line on what it costs beyond the student's own step.
        choose: one line on when to choose it.
        fusable: it can be computed by `functional.fused_head`, together with others.
        row_fusable: it can be computed by `functional.fused_rows`, block by block.
        keeps_hidden: it reads the student's hidden states.
        one_vocabulary: it works only where both models have the same vocabulary.
        exempt: contract tests that it need not pass, and why; the documentation prints them.
        parts: what it learns itself (projections), made by `prepare`; trained, saved and resumed
            with the run, and no part of the exported model.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    options_type: ClassVar[type]
    cost: ClassVar[str]
    choose: ClassVar[str]
    fusable: ClassVar[bool] = False
    row_fusable: ClassVar[bool] = False
    keeps_hidden: ClassVar[bool] = False
    one_vocabulary: ClassVar[bool] = False
    exempt: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options
        self.parts: nn.Module | None = None

    def prepare(self, pair: Pair) -> None:  # noqa: B027  # most objectives need nothing
        """Make what depends on the two models and not on a batch; called once, before training.

        Raises:
            ConfigError: the objective cannot work for this pair.
        """

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Say which hidden states of the student and of the teacher are read, by index."""
        return (), ()

    @abstractmethod
    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count what `loss` will sum over, before the student has run."""

    @abstractmethod
    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Tell whose log-probabilities among the student's tokens `loss` reads."""

    @abstractmethod
    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the loss over the batch; the count equals that of `count`."""

    def row_terms(self, batch: PairBatch, signal: Signal) -> list[RowTerm]:
        """Say what `functional.fused_rows` has to compute, if the objective is `row_fusable`.

        Raises:
            ConfigError: the objective cannot be computed by rows.
        """
        raise ConfigError(f"objective {self.name!r} has no form by rows; use Mix.from_logits")

    def fused_term(
        self, batch: PairBatch, signal: Signal, scale: Float[Tensor, ""]
    ) -> ChunkTerm | LabelTerm:
        """Say what `functional.fused_head` has to compute, if the objective is `fusable`.

        Args:
            batch: the collated batch.
            signal: the teacher's.
            scale: weight divided by the global count.

        Raises:
            ConfigError: the objective cannot be fused.
        """
        raise ConfigError(f"objective {self.name!r} has no fused form; use Mix.from_logits")


@dataclass(frozen=True)
class NoOptions:
    """The options of an objective that has none."""
