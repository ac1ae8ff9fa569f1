"""Chunk KL: only the text's own log-probabilities are compared, a chunk at a time."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.functional.chunk_kl import (
    check_chunk_kl,
    chunk_kl_loss,
    counted_chunks,
    counted_tokens,
)
from crosstill.functional.losses import LossSum
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores


@dataclass(frozen=True)
class ChunkKlOptions:
    """Options of `chunk_kl`.

    Raises:
        ConfigError: a value is outside its range.
    """

    credit: str = field(
        default="equal",
        metadata={"help": "equal shares, or prior: in proportion to the student's own nats"},
    )
    clip: float = field(
        default=10.0, metadata={"help": "nats; the largest pull on a token, inf for no limit"}
    )

    def __post_init__(self) -> None:
        check_chunk_kl(self.credit, self.clip)


class ChunkKl(Objective):
    """Share what a chunk lacks over the student's tokens; see `functional.chunk_kl_loss`."""

    name = "chunk_kl"
    paper = "Niu et al. 2026 (Breaking the Tokenizer Barrier), arXiv:2606.09456"
    needs = frozenset({"token_logprob"})
    options_type = ChunkKlOptions
    cost = "nothing beyond the student's own loss; the teacher gives one number a token"
    choose = "a teacher that gives token log-probabilities alone; best on the student's own samples"

    # The gradient of token t is -A_t (onehot - softmax) with A_t known once its chunk has been
    # scored, so a term of the fused head is possible, as for alm; there is none yet.

    options: ChunkKlOptions

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the student's tokens in chunks that have a likelihood on both sides."""
        return self.reads(batch).sum().float()

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens in chunks that count."""
        counted = counted_chunks(batch["student_chunk"], batch["teacher_chunk"])
        return counted_tokens(batch["student_chunk"], counted)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the loss over the tokens."""
        return chunk_kl_loss(
            student.token_logprob,
            signal.logprob,
            batch["student_chunk"],
            batch["teacher_chunk"],
            credit=self.options.credit,
            clip=self.options.clip,
        )
