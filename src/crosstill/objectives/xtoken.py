"""X-Token: the student's distribution carried over to the teacher's vocabulary."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum
from crosstill.functional.projection import Projection, check_projection, make_projection
from crosstill.functional.xtoken import check_xtoken, xtoken_loss
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.chunked import (
    TEACHER_ROWS,
    add_up,
    first_tokens,
    number_of_chunks,
    rows_of_chunks,
)
from crosstill.objectives.pair import Pair


@dataclass(frozen=True)
class XtokenOptions:
    """Options of `xtoken`.

    Raises:
        ConfigError: a value is outside its range.
    """

    top_k: int = field(
        default=512, metadata={"help": "teacher tokens that are compared one by one"}
    )
    tail: str = field(
        default="pool", metadata={"help": "pool all other tokens into one class, or drop them"}
    )
    decay: float = field(
        default=0.1, metadata={"help": "weight of each further piece of a token spelled in several"}
    )
    max_pieces: int = field(
        default=4, metadata={"help": "student tokens that take more pieces are unmapped"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "softens both distributions; the loss keeps its scale"}
    )

    def __post_init__(self) -> None:
        check_xtoken(self.top_k, self.tail, self.temperature)
        check_projection(self.decay, self.max_pieces)


class Xtoken(Objective):
    """Compare in the teacher's vocabulary; see `functional.xtoken_loss`."""

    name = "xtoken"
    paper = "Sreenivas et al. 2026 (X-Token), arXiv:2605.21699"
    needs = frozenset({"logits"})
    options_type = XtokenOptions
    cost = "the teacher's logits before every chunk, and a sparse product over both vocabularies"
    choose = "two tokenizers that cut differently what matters, such as numbers"

    options: XtokenOptions

    def __init__(self, options: XtokenOptions) -> None:
        super().__init__(options)
        self._projection: Projection | None = None

    def prepare(self, pair: Pair) -> None:
        """Make the projection from the pair's shared tokens and spellings."""
        offsets, ids = (torch.from_numpy(one.copy()) for one in pair.vocabulary.student_spelled())
        self._projection = make_projection(
            torch.from_numpy(pair.vocabulary.shared().copy()),
            offsets,
            ids,
            pair.teacher.vocab_size,
            decay=self.options.decay,
            max_pieces=self.options.max_pieces,
        )

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks that both models predict."""
        return number_of_chunks(batch)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the first token of every chunk."""
        return first_tokens(batch)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the chunks, asking the teacher for a block at a time.

        Raises:
            ConfigError: `prepare` was not called.
        """
        rows = rows_of_chunks(batch)
        projection = self._known(rows.batch.device)
        blocks = (student.rows(rows.batch, rows.student_row), rows.batch, rows.teacher_row)
        return add_up(
            [
                xtoken_loss(
                    logits,
                    signal.rows(row, position),
                    projection,
                    top_k=self.options.top_k,
                    tail=self.options.tail,
                    temperature=self.options.temperature,
                )
                for logits, row, position in zip(
                    *(one.split(TEACHER_ROWS) for one in blocks), strict=True
                )
            ]
        )

    def _known(self, device: torch.device) -> Projection:
        if self._projection is None:
            raise ConfigError(
                "objective 'xtoken' does not know the vocabularies; call Mix.prepare(pair) first"
            )
        self._projection = self._projection.to(device)
        return self._projection
