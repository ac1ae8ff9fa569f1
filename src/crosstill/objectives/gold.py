"""GOLD: distributions of chunks, token by token where both vocabularies have the token."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.chunk_tokens import SideRows, rest_logprob, side_rows
from crosstill.functional.gold import ChunkTokens, GoldForm, gold_loss
from crosstill.functional.losses import LossSum
from crosstill.functional.matching import MatchedColumns, match_columns
from crosstill.functional.positions import predicted
from crosstill.functional.rows import chunk_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.pair import Pair


@dataclass(frozen=True)
class GoldOptions(GoldForm):
    """Options of `gold`: those of `functional.GoldForm`, and whether tokens are matched at all.

    Raises:
        ConfigError: a value is outside its range.
    """

    merge: str = field(
        default="causal",
        metadata={"help": "causal; observed or bayesian give TRL's numbers for its two strategies"},
    )
    hybrid: bool = field(
        default=True,
        metadata={"help": "compare tokens of the same bytes one by one, the others by rank"},
    )
    beta: float = field(
        default=0.5,
        metadata={
            "help": "0 is KL(teacher || student), 1 the reverse, between them Jensen-Shannon"
        },
    )
    tail: str = field(
        default="pooled",
        metadata={"help": "pooled (one class for all other tokens), renormalised, or trl"},
    )
    weights: str = field(
        default="share",
        metadata={"help": "share of matched tokens in the teacher's vocabulary, or fixed"},
    )
    matched_weight: float = field(
        default=1.0, metadata={"help": "with fixed weights, of the matched tokens"}
    )
    unmatched_weight: float = field(
        default=1.0, metadata={"help": "with fixed weights, of the others"}
    )
    student_temperature: float = field(
        default=1.0, metadata={"help": "divides the student's logits"}
    )
    teacher_temperature: float = field(
        default=1.0, metadata={"help": "divides the teacher's logits"}
    )


class Gold(Objective):
    """Compare what both models expect at each chunk; see `functional.gold_loss`."""

    name = "gold"
    paper = "Patiño et al. 2025, Unlocking On-Policy Distillation for Any Model Family (TRL's GOLD)"
    needs = frozenset({"logits"})
    options_type = GoldOptions
    cost = "both vocabularies a few times a chunk, and one more row for every other token of one"
    choose = "vocabularies that share many tokens, and a teacher whose logits are at hand"

    options: GoldOptions

    def __init__(self, options: GoldOptions) -> None:
        super().__init__(options)
        self._columns: MatchedColumns | None = None

    def prepare(self, pair: Pair) -> None:
        """Match the two vocabularies by the bytes of their tokens."""
        if self.options.hybrid:
            self._columns = match_columns(
                torch.from_numpy(pair.vocabulary.shared()),
                pair.student.vocab_size,
                pair.teacher.vocab_size,
            )

    def sides(self, batch: PairBatch) -> tuple[SideRows, SideRows]:
        """List what is read of either side."""
        chunks = batch["student_chunk"], batch["teacher_chunk"]
        rows = chunk_rows(*chunks)
        most = max(chunk.shape[1] for chunk in chunks)
        student, teacher = (
            side_rows(chunk, rows, most, self.options.merge, student=k == 0)
            for k, chunk in enumerate(chunks)
        )
        return student, teacher

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks that both models can be asked about."""
        rows = chunk_rows(batch["student_chunk"], batch["teacher_chunk"]).batch
        return torch.tensor(float(len(rows)), device=rows.device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens of those chunks."""
        side, _ = self.sides(batch)
        like = batch["student_chunk"]
        return predicted(like, side.batch, side.first - 1) | predicted(
            like, side.other_batch, side.other - 1
        )

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the loss over the chunks.

        Raises:
            ConfigError: tokens are matched and `prepare` was not called.
        """
        sides = self.sides(batch)
        logits = [
            scores.rows(side.batch, side.row)
            for scores, side in zip((student, signal), sides, strict=True)
        ]
        return gold_loss(
            logits[0],
            logits[1],
            self._tokens(student, sides[0], batch["student_input_ids"], student=True),
            self._tokens(signal, sides[1], batch["teacher_input_ids"], student=False),
            self._matched(logits[0]) if self.options.hybrid else None,
            self.options,
        )

    def _tokens(
        self,
        scores: StudentScores | Signal,
        side: SideRows,
        ids: Int64[Tensor, "B T"],
        *,
        student: bool,
    ) -> ChunkTokens:
        form = self.options
        rest = rest_logprob(
            scores.rows(side.other_batch, side.other_row),
            ids[side.other_batch, side.other],
            side.group,
            len(side.batch),
            temperature=form.student_temperature if student else form.teacher_temperature,
            merge=form.merge,
        )
        return ChunkTokens(ids[side.batch, side.first], side.alone, rest)

    def _matched(self, logits: Tensor) -> MatchedColumns:
        if self._columns is None:
            raise ConfigError(
                "gold compares tokens by name, but was not prepared; call prepare(pair) before "
                "training, or set gold.hybrid to false"
            )
        self._columns = self._columns.to(logits.device)
        return self._columns
