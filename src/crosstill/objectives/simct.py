"""SimCT: shared tokens, and the text's own chunks where the tokenizers part."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.chunk import chunk_loglikelihood
from crosstill.functional.losses import LossSum, add_up
from crosstill.functional.rows import ChunkRows
from crosstill.functional.simct import check_simct, simct_loss
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.chunked import TEACHER_ROWS, number_of_chunks, rows_of_chunks
from crosstill.objectives.pair import Pair


@dataclass(frozen=True)
class SimctOptions:
    """Options of `simct`.

    Raises:
        ConfigError: a value is outside its range.
    """

    divergence: str = field(
        default="kl", metadata={"help": "kl from the teacher, or reverse_kl as in the paper"}
    )
    temperature: float = field(
        default=1.0, metadata={"help": "softens both distributions; the loss keeps its scale"}
    )

    def __post_init__(self) -> None:
        check_simct(self.divergence, self.temperature)


class Simct(Objective):
    """Compare over shared tokens and the text's own chunks; see `functional.simct_loss`."""

    name = "simct"
    paper = "Sun et al. 2026 (SimCT), arXiv:2605.07711"
    needs = frozenset({"token_logprob", "logits"})
    options_type = SimctOptions
    cost = "the teacher's logits before every chunk, one block at a time"
    choose = "two tokenizers with many tokens in common"

    options: SimctOptions

    def __init__(self, options: SimctOptions) -> None:
        super().__init__(options)
        self._shared: Tensor | None = None

    def prepare(self, pair: Pair) -> None:
        """Take over the tokens that both vocabularies have.

        Raises:
            ConfigError: there are none.
        """
        shared = torch.from_numpy(pair.vocabulary.shared().copy())
        if not len(shared):
            raise ConfigError(
                "objective 'simct' compares tokens that both vocabularies have, but they share "
                "none. Use alm or chunk_kl, which need no common token"
            )
        self._shared = shared

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks that both models predict."""
        return number_of_chunks(batch)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens of these chunks."""
        chunk = batch["student_chunk"]
        rows = rows_of_chunks(batch)
        wide = max(chunk.shape[1], batch["teacher_chunk"].shape[1])
        known = torch.zeros(chunk.shape[0], wide, dtype=torch.bool, device=chunk.device)
        known[rows.batch, rows.chunk] = True
        return (chunk >= 0) & known.gather(1, chunk.clamp(min=0))

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the chunks, asking the teacher for a block at a time.

        Raises:
            ConfigError: `prepare` was not called.
        """
        shared = self._known(batch["student_chunk"].device)
        rows = rows_of_chunks(batch)
        spans = (
            _means(student.token_logprob, batch["student_chunk"], rows, rows.student_length),
            _means(signal.logprob, batch["teacher_chunk"], rows, rows.teacher_length),
            (rows.student_length > 1) | (rows.teacher_length > 1),
        )
        blocks = (
            student.rows(rows.batch, rows.student_row),
            rows.batch,
            rows.teacher_row,
            *spans,
        )
        return add_up(
            [
                simct_loss(
                    logits,
                    signal.rows(row, position),
                    shared,
                    *span,
                    divergence=self.options.divergence,
                    temperature=self.options.temperature,
                )
                for logits, row, position, *span in zip(
                    *(one.split(TEACHER_ROWS) for one in blocks), strict=True
                )
            ]
        )

    def _known(self, device: torch.device) -> Tensor:
        if self._shared is None:
            raise ConfigError(
                "objective 'simct' does not know the vocabularies; call Mix.prepare(pair) first"
            )
        if self._shared.device != device:
            self._shared = self._shared.to(device)
        return self._shared


def _means(logprob: Tensor, chunk: Tensor, rows: ChunkRows, length: Tensor) -> Float[Tensor, " N"]:
    """Mean log-probability of each chunk's tokens, in nats."""
    total = chunk_loglikelihood(logprob, chunk, chunk.shape[1])
    return total[rows.batch, rows.chunk] / length
