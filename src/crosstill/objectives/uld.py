"""Universal logit distillation: sorted probabilities, whatever tokens they belong to."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.positions import RowPairs, position_rows, predicted
from crosstill.functional.rows import chunk_rows
from crosstill.functional.uld import check_uld, uld_loss
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores

ALIGNMENTS = ("position", "bytes")


@dataclass(frozen=True)
class UldOptions:
    """Options of `uld`.

    Raises:
        ConfigError: a value is outside its range.
    """

    student_temperature: float = field(
        default=1.0, metadata={"help": "divides the student's logits"}
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "divides the teacher's logits"}
    )
    alignment: str = field(
        default="position",
        metadata={"help": "position (as published: k-th row with k-th row) or bytes (chunks)"},
    )
    top_k: int = field(
        default=0, metadata={"help": "compare only the largest k of a row; 0 compares all, exactly"}
    )

    def __post_init__(self) -> None:
        check_uld(self.student_temperature, self.teacher_temperature, self.top_k)
        if self.alignment not in ALIGNMENTS:
            raise ConfigError(
                f"uld.alignment must be one of {', '.join(ALIGNMENTS)}; got {self.alignment!r}"
            )


class Uld(Objective):
    """Match sorted probabilities; see `functional.uld_loss`."""

    name = "uld"
    paper = "Boizard, El Haddad, Hudelot, Colombo 2024, arXiv:2402.12030"
    needs = frozenset({"logits"})
    options_type = UldOptions
    cost = "both vocabularies once a token: a few passes on a CPU, a sort elsewhere"
    choose = "as a baseline: it needs no vocabulary map and no alignment, and knows no token"

    options: UldOptions

    def pairs(self, batch: PairBatch) -> RowPairs:
        """List the rows that are compared."""
        if self.options.alignment == "position":
            return position_rows(batch["student_labels"], batch["teacher_labels"])
        rows = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
        return RowPairs(rows.batch, rows.student_row, rows.teacher_row)

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the pairs of rows."""
        pairs = self.pairs(batch).batch
        return torch.tensor(float(len(pairs)), device=pairs.device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that the student's rows predict."""
        pairs = self.pairs(batch)
        return predicted(batch["student_labels"], pairs.batch, pairs.student_row)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the distances of the pairs."""
        pairs = self.pairs(batch)
        return uld_loss(
            student.rows(pairs.batch, pairs.student_row),
            signal.rows(pairs.batch, pairs.teacher_row),
            student_temperature=self.options.student_temperature,
            teacher_temperature=self.options.teacher_temperature,
            top_k=self.options.top_k,
        )
