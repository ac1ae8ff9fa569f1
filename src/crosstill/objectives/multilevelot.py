"""MultiLevelOT: the most likely tokens of an answer by rank, and transport between its rows."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.functional.losses import LossSum
from crosstill.functional.multilevelot import OtForm, multilevelot_loss
from crosstill.functional.positions import position_rows, predicted
from crosstill.functional.rows import label_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores

Rows = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MultilevelotOptions(OtForm):
    """Options of `multilevelot`; the defaults are the authors'.

    Raises:
        ConfigError: a value is outside its range.
    """

    top_k: int = field(
        default=50, metadata={"help": "columns kept of either side, the likeliest of the answer"}
    )
    log_weight: float = field(default=0.1, metadata={"help": "of the divergence by rank"})
    transport_weight: float = field(
        default=0.1, metadata={"help": "of the transport between the rows of an answer"}
    )
    regularisation: float = field(
        default=0.1, metadata={"help": "spreads the transport plan; above 0"}
    )
    rounds: int = field(
        default=10, metadata={"help": "normalisations of the transport plan's rows and columns"}
    )
    compatible: bool = field(
        default=False, metadata={"help": "compute what the authors' code does, oddities included"}
    )


class Multilevelot(Objective):
    """Match answers by rank and by transport; see `functional.multilevelot_loss`."""

    name = "multilevelot"
    paper = "Cui, Zhu, Qin, Xie, Zhou, Li 2024, arXiv:2412.14528"
    needs = frozenset({"logits"})
    options_type = MultilevelotOptions
    cost = "three softmaxes of the student's rows, two of the teacher's, and Tt x Ts distances"
    choose = "as a baseline; like uld it knows no token, and it looks at whole answers"

    options: MultilevelotOptions

    def rows(self, batch: PairBatch) -> tuple[Rows, Rows]:
        """List what is read of either side: (sequence, position) of its rows.

        The authors' code also reads what one side has more than the other.
        """
        labels = batch["student_labels"], batch["teacher_labels"]
        if self.options.compatible:
            student, teacher = (label_rows(side)[:2] for side in labels)
            return student, teacher
        pairs = position_rows(*labels)
        return (pairs.batch, pairs.student_row), (pairs.batch, pairs.teacher_row)

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the pairs of rows."""
        pairs = position_rows(batch["student_labels"], batch["teacher_labels"]).batch
        return torch.tensor(float(len(pairs)), device=pairs.device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that the student's rows predict."""
        return predicted(batch["student_labels"], *self.rows(batch)[0])

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the three parts over the sequences."""
        sequences = len(batch["student_labels"])
        logits = []
        for scores, rows in zip((student, signal), self.rows(batch), strict=True):
            sizes = torch.bincount(rows[0], minlength=sequences).tolist()
            logits.append(scores.rows(*rows).split(sizes))
        return multilevelot_loss(logits[0], logits[1], self.options)
