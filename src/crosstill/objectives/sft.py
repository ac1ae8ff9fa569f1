"""Ordinary next-token training on the student's own tokens."""

from jaxtyping import Bool, Float
from torch import Tensor

from crosstill.functional.fused import LabelTerm
from crosstill.functional.losses import LossSum, sft_loss, supervised_tokens
from crosstill.objectives.base import NoOptions, Objective, PairBatch, Signal, StudentScores


class Sft(Objective):
    """Negative log-likelihood of the supervised tokens; see `functional.sft_loss`."""

    name = "sft"
    paper = "maximum likelihood; no teacher"
    needs = frozenset()
    options_type = NoOptions
    cost = "nothing: the plain training loss"
    choose = "beside alm when the answers in the data are better than the teacher's"
    fusable = True

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the supervised tokens."""
        return supervised_tokens(batch["student_labels"]).sum().float()

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the tokens that have a label."""
        return supervised_tokens(batch["student_labels"])

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the negative log-likelihood."""
        return sft_loss(student.token_logprob, batch["student_labels"])

    def fused_term(self, batch: PairBatch, signal: Signal, scale: Float[Tensor, ""]) -> LabelTerm:
        """Say what the fused head has to compute."""
        return LabelTerm(labels=batch["student_labels"], scale=scale)
