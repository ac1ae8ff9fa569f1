"""Prefix KL: the teacher's whole next-token distribution, read in the student's tokens."""

from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.prefix_blocks import PrefixBlock, PrefixTables
from crosstill.functional.prefix_kl import CHUNKS, add_blocks
from crosstill.functional.prefix_plan import PrefixPlan, plan_prefixes
from crosstill.functional.prefix_rows import prefix_rows_loss
from crosstill.functional.row_head import RowTerm
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.pair import Pair
from crosstill.objectives.prefix_tables import pair_tables


@dataclass(frozen=True)
class PrefixKlOptions:
    """Options of `prefix_kl`.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float = field(default=1.0, metadata={"help": "of both softmaxes"})
    top_k: int = field(
        default=0, metadata={"help": "read only so many of the teacher's tokens a row; 0: all"}
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature < float("inf"):
            raise ConfigError(
                f"prefix_kl.temperature must be above 0 and finite; got {self.temperature}"
            )
        if self.top_k < 0:
            raise ConfigError(f"prefix_kl.top_k must be at least 0 (all); got {self.top_k}")


class PrefixKl(Objective):
    """Match next-token distributions by summing over spellings; see `functional.prefix_kl_loss`."""

    name = "prefix_kl"
    paper = "crosstill's own; see its page"
    needs = frozenset({"logits"})
    options_type = PrefixKlOptions
    cost = "one pass over the teacher's vocabulary for each chunk"
    choose = "the teacher runs beside the student, and its whole distribution is to be learned"
    row_fusable = True

    options: PrefixKlOptions

    def __init__(self, options: PrefixKlOptions) -> None:
        super().__init__(options)
        self._tables: PrefixTables | None = None

    def prepare(self, pair: Pair) -> None:
        """Spell both vocabularies in each other's tokens and sort them."""
        self._tables = pair_tables(pair.vocabulary)

    def plan(self, batch: PairBatch) -> PrefixPlan:
        """Find the rows that are read; from the batch alone.

        Raises:
            ConfigError: `prepare` was not called.
        """
        if self._tables is None:
            raise ConfigError(
                "prefix_kl has to know both vocabularies: call Mix.prepare(model_pair(...)) once"
            )
        self._tables = self._tables.to(batch["student_chunk"].device)
        return plan_prefixes(
            batch["student_input_ids"],
            batch["teacher_input_ids"],
            batch["teacher_attention_mask"],
            batch["student_chunk"],
            batch["teacher_chunk"],
            self._tables,
        )

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the student's rows that have a target."""
        return torch.tensor(float(len(self.plan(batch))), device=batch["student_chunk"].device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that are in a chunk."""
        return batch["student_chunk"] >= 0

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergences over the student's rows."""
        parts = [term.loss(student.rows(*term.rows)) for term in self.row_terms(batch, signal)]
        return add_blocks(parts, student.logits)

    def row_terms(self, batch: PairBatch, signal: Signal) -> list[RowTerm]:
        """Cut what is read into blocks, each with its loss."""
        return [
            RowTerm(block.student, partial(self.block_loss, block=block, signal=signal))
            for block in self.plan(batch).blocks(CHUNKS)
        ]

    def block_loss(
        self, logits: Float[Tensor, "S Vs"], block: PrefixBlock, signal: Signal
    ) -> LossSum:
        """Sum the divergences of one block from the student's logits at its rows."""
        assert self._tables is not None  # noqa: S101  # blocks come from `plan`
        return prefix_rows_loss(
            logits,
            signal.rows(*block.teacher),
            block,
            self._tables,
            temperature=self.options.temperature,
            top_k=self.options.top_k or None,
        )
