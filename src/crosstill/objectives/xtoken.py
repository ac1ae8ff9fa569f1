"""X-Token: the student's distribution carried over to the teacher's vocabulary."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.losses import LossSum, add_up
from crosstill.functional.projection import (
    Projection,
    check_projection,
    check_threshold,
    make_projection,
    relaxed_pairs,
)
from crosstill.functional.xtoken import (
    check_hybrid,
    check_xtoken,
    xtoken_hybrid_loss,
    xtoken_loss,
)
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.chunked import (
    TEACHER_ROWS,
    first_tokens,
    number_of_chunks,
    rows_of_chunks,
)
from crosstill.objectives.pair import Pair

MODES = ("projection", "hybrid")


@dataclass(frozen=True)
class XtokenOptions:
    """Options of `xtoken`.

    Raises:
        ConfigError: a value is outside its range.
    """

    mode: str = field(
        default="projection",
        metadata={"help": "projection, or hybrid: matched tokens one by one, the others sorted"},
    )
    top_k: int = field(
        default=512, metadata={"help": "projection: teacher tokens that are compared one by one"}
    )
    tail: str = field(
        default="pool", metadata={"help": "projection: pool all other tokens, or drop them"}
    )
    decay: float = field(
        default=0.1, metadata={"help": "weight of each further piece of a token spelled in several"}
    )
    max_pieces: int = field(
        default=4, metadata={"help": "student tokens that take more pieces are unmapped"}
    )
    match_threshold: float = field(
        default=0.6, metadata={"help": "hybrid: least weight at which a token counts as matched"}
    )
    matched_weight: float = field(default=1.0, metadata={"help": "hybrid: of the matched tokens"})
    unmatched_weight: float = field(default=1.0, metadata={"help": "hybrid: of all others"})
    temperature: float = field(
        default=1.0, metadata={"help": "softens both distributions; the loss keeps its scale"}
    )

    def __post_init__(self) -> None:
        check_xtoken(self.top_k, self.tail, self.temperature)
        check_projection(self.decay, self.max_pieces)
        check_threshold(self.match_threshold)
        check_hybrid(self.matched_weight, self.unmatched_weight, self.temperature)
        if self.mode not in MODES:
            raise ConfigError(f"xtoken.mode must be one of {', '.join(MODES)}; got {self.mode!r}")


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
        self._pairs: Tensor | None = None

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
        self._pairs = relaxed_pairs(self._projection, self.options.match_threshold)

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
        projection, pairs = self._known(rows.batch.device)
        blocks = (student.rows(rows.batch, rows.student_row), rows.batch, rows.teacher_row)
        parts = []
        for logits, row, position in zip(*(one.split(TEACHER_ROWS) for one in blocks), strict=True):
            teacher = signal.rows(row, position)
            parts.append(self._compare(logits, teacher, projection, pairs))
        return add_up(parts)

    def _compare(
        self, student: Tensor, teacher: Tensor, projection: Projection, pairs: Tensor
    ) -> LossSum:
        options = self.options
        if options.mode == "hybrid":
            return xtoken_hybrid_loss(
                student,
                teacher,
                pairs,
                matched_weight=options.matched_weight,
                unmatched_weight=options.unmatched_weight,
                temperature=options.temperature,
            )
        return xtoken_loss(
            student,
            teacher,
            projection,
            top_k=options.top_k,
            tail=options.tail,
            temperature=options.temperature,
        )

    def _known(self, device: torch.device) -> tuple[Projection, Tensor]:
        if self._projection is None or self._pairs is None:
            raise ConfigError(
                "objective 'xtoken' does not know the vocabularies; call Mix.prepare(pair) first"
            )
        if self._pairs.device != device:
            self._projection, self._pairs = self._projection.to(device), self._pairs.to(device)
        return self._projection, self._pairs
