"""Sequence-level distillation: plain training on text that the teacher wrote."""

from crosstill.objectives.sft import Sft


class SeqKd(Sft):
    """Negative log-likelihood of the supervised tokens of rows that the teacher wrote.

    The loss is that of `sft`; what makes it a distillation is the data, which
    `crosstill.evaluation.divergence.sample_teacher` writes and `Samples.rows` turns into rows. An
    objective cannot see who wrote a row.
    """

    name = "seqkd"
    paper = "Kim and Rush 2016, arXiv:1606.07947"
    choose = "when only the teacher's texts can be had, or as the plainest thing to compare with"
