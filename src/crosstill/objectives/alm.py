"""Approximate likelihood matching: the same bytes get the same likelihood from both models."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.divergences import check_divergence
from crosstill.functional.fused import ChunkTerm
from crosstill.functional.losses import LossSum, TeacherChunks, alm_loss, teacher_chunks
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores


@dataclass(frozen=True)
class AlmOptions:
    """Options of `alm`; the defaults are the paper's recipe.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float = field(
        default=100.0,
        metadata={"help": "flattens the likelihoods; inf is the limit, 5 did as well in the paper"},
    )
    divergence: str = field(
        default="kl",
        metadata={"help": "kl, reverse_kl or total_variation, of chunk against anything else"},
    )
    merge_threshold: float = field(
        default=0.1,
        metadata={"help": "chunks grow until the teacher's boundary probability exceeds this"},
    )
    debias: bool = field(
        default=True,
        metadata={"help": "also ask that a word boundary follows the chunk"},
    )

    def __post_init__(self) -> None:
        check_divergence(self.divergence, self.temperature)
        if not 0.0 <= self.merge_threshold < 1.0:
            raise ConfigError(
                f"alm.merge_threshold must be at least 0 and below 1; got {self.merge_threshold}"
            )


class Alm(Objective):
    """Match the likelihoods of chunks; see `functional.alm_loss`."""

    name = "alm"
    paper = "Minixhofer, Vulić, Ponti 2025, arXiv:2503.20083"
    needs = frozenset({"token_logprob", "boundary"})
    options_type = AlmOptions
    cost = "nothing beyond the student's own loss; the teacher gives two numbers a token"
    choose = "the default: any pair of tokenizers, base or chat models"
    fusable = True

    options: AlmOptions

    def teacher(self, batch: PairBatch, signal: Signal) -> TeacherChunks:
        """Merge the batch's chunks and sum the teacher's side of them."""
        return teacher_chunks(
            signal.logprob,
            batch["student_chunk"],
            batch["teacher_chunk"],
            signal.boundary,
            merge_threshold=self.options.merge_threshold,
            debias=self.options.debias,
        )

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the merged chunks that hold a token with a likelihood on both sides."""
        return self.teacher(batch, signal).counted.sum().float()

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that are in a chunk."""
        return batch["student_chunk"] >= 0

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the merged chunks."""
        return alm_loss(
            student.token_logprob,
            signal.logprob,
            batch["student_chunk"],
            batch["teacher_chunk"],
            student_boundary=student.boundary if self.options.debias else None,
            teacher_boundary=signal.boundary,
            temperature=self.options.temperature,
            divergence=self.options.divergence,
            merge_threshold=self.options.merge_threshold,
        )

    def fused_term(self, batch: PairBatch, signal: Signal, scale: Float[Tensor, ""]) -> ChunkTerm:
        """Say what the fused head has to compute."""
        return ChunkTerm(
            teacher=self.teacher(batch, signal),
            scale=scale,
            temperature=self.options.temperature,
            divergence=self.options.divergence,
            debias=self.options.debias,
        )
