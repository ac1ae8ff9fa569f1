"""Prefix KL: the teacher's whole next-token distribution, read in the student's tokens."""

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.align.prefixes import PrefixTable, first_tokens, prefix_table, start_classes
from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.prefix_kl import PrefixBlock, PrefixTables, prefix_rows_loss
from crosstill.functional.prefix_plan import PrefixPlan, plan_prefixes
from crosstill.functional.prefixes import PrefixTree
from crosstill.functional.row_head import RowTerm
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.pair import Pair, VocabularyPair

CHUNKS = 128
"""Chunks that are looked at together: their rows of both vocabularies stand in memory at once."""


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
        self._tables = make_tables(pair.vocabulary)

    def plan(self, batch: PairBatch) -> PrefixPlan:
        """Find the rows that are read; from the batch alone.

        Raises:
            ConfigError: `prepare` was not called.
        """
        if self._tables is None:
            raise ConfigError(
                "prefix_kl has to know both vocabularies: call Mix.prepare(model_pair(...)) once"
            )
        names = ("student_input_ids", "teacher_input_ids", "teacher_attention_mask")
        chunks = batch["student_chunk"], batch["teacher_chunk"]
        self._tables = self._tables.to(chunks[0].device)
        return plan_prefixes(*(batch[name] for name in names), *chunks, self._tables)

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the student's rows that have a target."""
        return torch.tensor(float(len(self.plan(batch))), device=batch["student_chunk"].device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that are in a chunk."""
        return batch["student_chunk"] >= 0

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergences over the student's rows."""
        parts = [term.loss(student.rows(*term.rows)) for term in self.row_terms(batch, signal)]
        return add_sums(parts, student.logits)

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


def add_sums(parts: list[LossSum], like: Tensor) -> LossSum:
    """Add the sums of blocks; 0 with a graph where there is none."""
    if not parts:
        nothing = like[..., :0].sum().float()
        zero = nothing.detach()
        return LossSum(nothing, zero, dict.fromkeys(("start", "inside", "split"), zero))
    return LossSum(
        torch.stack([part.total for part in parts]).sum(),
        torch.stack([part.count for part in parts]).sum(),
        {name: torch.stack([part.sums[name] for part in parts]).sum() for name in parts[0].sums},
    )


def make_tables(vocabulary: VocabularyPair) -> PrefixTables:
    """Sort two vocabularies by their spellings in each other's tokens."""
    if vocabulary.identical:  # every token as itself, also those that no text is cut into
        every = np.arange(len(vocabulary.student_bytes.lengths) + 1)
        teacher = student = (every, every[:-1])
    else:
        teacher, student = vocabulary.teacher_spelled(), vocabulary.student_spelled()
    kind = start_classes(student, teacher)
    pooled = (kind >= 0) & (kind != np.arange(len(kind)))
    longer = prefix_table(student, keep=pooled)
    known = np.flatnonzero(kind >= 0)
    members = known[np.argsort(kind[known], kind="stable")]
    sizes = np.bincount(kind[known], minlength=len(kind))
    arrays = {
        "student_class": kind,
        "teacher_class": first_tokens(teacher),
        "above": _ancestors(longer, len(kind)),
        "members": members,
        "class_start": np.concatenate([[0], np.cumsum(sizes)]),
        "student_bytes": vocabulary.student_bytes.lengths,
        "teacher_bytes": vocabulary.teacher_bytes.lengths,
    }
    return PrefixTables(
        starts=_tree(prefix_table(teacher)),
        longer=_tree(longer),
        **{name: torch.from_numpy(np.array(array, np.int64)) for name, array in arrays.items()},
    )


def _tree(table: PrefixTable) -> PrefixTree:
    return PrefixTree.of(
        {name: torch.from_numpy(np.array(array)) for name, array in vars(table).items()}
    )


def _ancestors(table: PrefixTable, vocab_size: int) -> np.ndarray:
    """int64 [V, D]: the nodes on the way to each token of the table; -1 past its end."""
    depth = np.zeros(len(table.low), np.int64)
    for node in range(1, len(depth)):
        depth[node] = depth[table.parent[node]] + 1
    found = np.full((vocab_size, max(int(depth.max(initial=0)), 1)), -1, np.int64)
    for node in range(1, len(depth)):
        found[table.order[table.low[node] : table.high[node]], depth[node] - 1] = node
    return found
