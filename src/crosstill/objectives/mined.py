"""MinED: the teacher's distribution before each chunk, token by token to the nearest spelling."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum, add_up, supervised_tokens
from crosstill.functional.mined import check_mined, mined_loss, one_hot_loss
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.chunked import (
    TEACHER_ROWS,
    first_tokens,
    number_of_chunks,
    rows_of_chunks,
)
from crosstill.objectives.pair import Pair

FALLBACKS = ("skip", "one_hot")


@dataclass(frozen=True)
class MinedOptions:
    """Options of `mined`.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float = field(
        default=1.0, metadata={"help": "softens both distributions; the loss keeps its scale"}
    )
    merge: str = field(
        default="sum",
        metadata={"help": "of teacher tokens with one target: sum, max, or first (as released)"},
    )
    fallback: str = field(
        default="skip",
        metadata={
            "help": "student tokens inside a chunk: skip, or one_hot on the text (as released)"
        },
    )

    def __post_init__(self) -> None:
        check_mined(self.temperature, self.merge)
        if self.fallback not in FALLBACKS:
            raise ConfigError(
                f"mined.fallback must be one of {', '.join(FALLBACKS)}; got {self.fallback!r}"
            )


class Mined(Objective):
    """Send every teacher token's mass to the student token spelled most alike."""

    name = "mined"
    paper = "Wan et al. 2024 (FuseLLM), arXiv:2401.10491"
    needs = frozenset({"logits"})
    options_type = MinedOptions
    cost = "the teacher's logits before every chunk; a map of the vocabularies, made once"
    choose = "vocabularies that share most tokens, such as two byte-level ones of one size"

    options: MinedOptions

    def __init__(self, options: MinedOptions) -> None:
        super().__init__(options)
        self._map: Tensor | None = None

    def prepare(self, pair: Pair) -> None:
        """Take the map of the vocabularies, made or read from the cache."""
        found = pair.vocabulary.mined()[: pair.teacher.vocab_size]
        self._map = torch.from_numpy(np.where(found < pair.student.vocab_size, found, -1))

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks that both models predict, and the tokens that fall back."""
        chunks = number_of_chunks(batch)
        if self.options.fallback == "skip":
            return chunks
        return chunks + _inside(batch).sum()

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the first token of every chunk, and the tokens that fall back."""
        first = first_tokens(batch)
        return first if self.options.fallback == "skip" else first | _inside(batch)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the chunks, asking the teacher for a block at a time.

        `sums` holds over all rows: `mapped`, the teacher's mass that the map carries; `inside`, the
        supervised tokens that no row of the teacher's reaches.

        Raises:
            ConfigError: `prepare` was not called.
        """
        if self._map is None:
            raise ConfigError(
                "objective 'mined' does not know the vocabularies; call Mix.prepare(pair) first"
            )
        rows = rows_of_chunks(batch)
        self._map = self._map.to(rows.batch.device)
        blocks = (student.rows(rows.batch, rows.student_row), rows.batch, rows.teacher_row)
        parts = [
            mined_loss(
                logits,
                signal.rows(row, position),
                self._map,
                temperature=self.options.temperature,
                merge=self.options.merge,
            )
            for logits, row, position in zip(
                *(one.split(TEACHER_ROWS) for one in blocks), strict=True
            )
        ]
        found, inside = add_up(parts), _inside(batch)
        sums = {**found.sums, "inside": inside.sum().to(found.total.dtype)}
        if self.options.fallback == "skip":
            return LossSum(found.total, found.count, sums)
        row, token = inside.nonzero(as_tuple=True)
        target = batch["student_input_ids"][row, token]
        rest = one_hot_loss(
            student.rows(row, token - 1), target, temperature=self.options.temperature
        )
        return LossSum(found.total + rest.total, found.count + rest.count, sums)


def _inside(batch: PairBatch) -> Bool[Tensor, "B Ts"]:
    """Supervised student tokens that no chunk begins with."""
    return supervised_tokens(batch["student_labels"]) & ~first_tokens(batch)
