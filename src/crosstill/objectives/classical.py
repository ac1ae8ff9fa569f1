"""The divergences for a student and a teacher that share one vocabulary."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional import classical, clipped
from crosstill.functional.losses import LossSum, add_up
from crosstill.functional.rowsum import check_temperature
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.chunked import (
    TEACHER_ROWS,
    first_tokens,
    number_of_chunks,
    rows_of_chunks,
)
from crosstill.objectives.pair import Pair

_TEMPERATURE = {"help": "softens both distributions; the loss keeps its scale"}


@dataclass(frozen=True)
class TemperatureOptions:
    """The options of a divergence without any of its own.

    Raises:
        ConfigError: a value is outside its range.
    """

    temperature: float = field(default=1.0, metadata=_TEMPERATURE)

    def __post_init__(self) -> None:
        check_temperature(self.temperature)


@dataclass(frozen=True)
class JsdOptions(TemperatureOptions):
    """Options of `jsd`."""

    beta: float = field(
        default=0.5, metadata={"help": "0 is the forward KL, 1 the reverse, 0.5 is symmetric"}
    )
    scale: str = field(
        default="continuous",
        metadata={"help": "continuous, or gkd: the published value, which jumps at 0 and 1"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        classical.check_jsd(self.beta, self.scale)


@dataclass(frozen=True)
class SkewedOptions(TemperatureOptions):
    """Options of `skewed_kl` and `skewed_reverse_kl`."""

    alpha: float = field(
        default=0.1, metadata={"help": "share of the other side in the mixture that is compared"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        classical.check_alpha(self.alpha)


@dataclass(frozen=True)
class AdaptiveOptions(TemperatureOptions):
    """Options of `adaptive_kl`."""

    mu: float = field(default=0.5, metadata={"help": "mass of the teacher's likeliest tokens"})
    head_size: int = field(
        default=1024, metadata={"help": "tokens among which these are looked for"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        classical.check_head(self.mu, self.head_size)


@dataclass(frozen=True)
class DacOptions(TemperatureOptions):
    """Options of `dac_kl`."""

    lower: float = field(
        default=0.0, metadata={"help": "mass of the likeliest tokens that are clipped away"}
    )
    upper: float = field(
        default=0.95, metadata={"help": "mass after which everything is clipped away"}
    )
    top_k: int = field(default=1024, metadata={"help": "tokens among which the rest is looked for"})
    tail: str = field(
        default="pool", metadata={"help": "pool what is clipped away into one class, or drop it"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped.check_clipping(self.lower, self.upper, self.top_k, self.tail)


@dataclass(frozen=True)
class SwappedOptions(TemperatureOptions):
    """Options of `swapped_kl`."""

    student_weight: float = field(
        default=1.0, metadata={"help": "weight of the student set right; the paper begins with 0"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        clipped.check_student_weight(self.student_weight)


class OneVocabulary(Objective):
    """A divergence between two distributions over the same ids, at every supervised row."""

    needs = frozenset({"logits"})
    options_type: ClassVar[type] = TemperatureOptions
    one_vocabulary = True
    cost = "the teacher's logits at every supervised token, one block at a time"

    def prepare(self, pair: Pair) -> None:
        """Refuse a pair with two vocabularies.

        Raises:
            ConfigError: the vocabularies differ, naming what works across them.
        """
        if not pair.vocabulary.identical:
            raise ConfigError(
                f"objective {self.name!r} compares two distributions id by id, but the student's "
                f"vocabulary ({pair.student.vocab_size} ids) is not the teacher's "
                f"({pair.teacher.vocab_size} ids, or other bytes at the same ids). Use a method "
                "that works across tokenizers: alm, or one with logits such as xtoken or simct"
            )

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the rows that predict a token which both sides read."""
        return number_of_chunks(batch)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the first token of every chunk: with one vocabulary, each is one token."""
        return first_tokens(batch)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the divergence over the rows, asking the teacher for a block of them at a time."""
        rows = rows_of_chunks(batch)
        target = batch["student_input_ids"][rows.batch, rows.student_row + 1]
        logits = student.rows(rows.batch, rows.student_row)
        parts = [
            self.compare(of_student, signal.rows(row, position), token)
            for of_student, row, position, token in zip(
                logits.split(TEACHER_ROWS),
                rows.batch.split(TEACHER_ROWS),
                rows.teacher_row.split(TEACHER_ROWS),
                target.split(TEACHER_ROWS),
                strict=True,
            )
        ]
        return add_up(parts)

    @abstractmethod
    def compare(
        self,
        student: Float[Tensor, "N V"],
        teacher: Float[Tensor, "N V"],
        target: Int64[Tensor, " N"],
    ) -> LossSum:
        """Sum the divergence of these rows."""


class ForwardKl(OneVocabulary):
    """Match the teacher's whole distribution; see `functional.forward_kl`."""

    name = "forward_kl"
    paper = "Hinton, Vinyals, Dean 2015, arXiv:1503.02531"
    choose = "the plain choice where both models have one tokenizer"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum KL(teacher || student)."""
        return classical.forward_kl(student, teacher, temperature=self.options.temperature)


class ReverseKl(OneVocabulary):
    """Put no mass where the teacher has none; see `functional.reverse_kl`."""

    name = "reverse_kl"
    paper = "Gu, Dong, Wei, Huang 2023 (MiniLLM), arXiv:2306.08543"
    choose = "one tokenizer, and a student too small for all that the teacher may say"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum KL(student || teacher)."""
        return classical.reverse_kl(student, teacher, temperature=self.options.temperature)


class Jsd(OneVocabulary):
    """Between forward and reverse KL; see `functional.jsd`."""

    name = "jsd"
    paper = "Agarwal et al. 2023 (GKD), arXiv:2306.13649"
    options_type = JsdOptions
    choose = "one tokenizer, and a loss that no single token can blow up"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum the generalised Jensen-Shannon divergence."""
        options = self.options
        return classical.jsd(
            student,
            teacher,
            beta=options.beta,
            scale=options.scale,
            temperature=options.temperature,
        )


class SkewedKl(OneVocabulary):
    """The forward KL against a mixture; see `functional.skewed_kl`."""

    name = "skewed_kl"
    paper = "Ko et al. 2024 (DistiLLM), arXiv:2402.03898"
    options_type = SkewedOptions
    choose = "one tokenizer, and a student far from its teacher"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum KL(teacher || mixture)."""
        options = self.options
        return classical.skewed_kl(
            student, teacher, alpha=options.alpha, temperature=options.temperature
        )


class SkewedReverseKl(OneVocabulary):
    """The reverse KL against a mixture; see `functional.skewed_reverse_kl`."""

    name = "skewed_reverse_kl"
    paper = "Ko et al. 2024 (DistiLLM), arXiv:2402.03898"
    options_type = SkewedOptions
    choose = "as reverse_kl, steadier"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum KL(student || mixture)."""
        options = self.options
        return classical.skewed_reverse_kl(
            student, teacher, alpha=options.alpha, temperature=options.temperature
        )


class AdaptiveKl(OneVocabulary):
    """Forward and reverse KL, weighted by where the models differ; see `functional.adaptive_kl`."""

    name = "adaptive_kl"
    paper = "Wu et al. 2024 (AKL), arXiv:2404.02657"
    options_type = AdaptiveOptions
    choose = "one tokenizer and few steps: the head and the tail are learnt at once"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum the weighted divergences."""
        options = self.options
        return classical.adaptive_kl(
            student,
            teacher,
            mu=options.mu,
            head_size=options.head_size,
            temperature=options.temperature,
        )


class TotalVariation(OneVocabulary):
    """Half the sum of the differences in probability; see `functional.total_variation`."""

    name = "total_variation"
    paper = "Wen, Li, Du, Mou 2023 (f-distill), arXiv:2307.15190"
    choose = "one tokenizer and noisy text: no token weighs more than its probability"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum the total variation."""
        return classical.total_variation(student, teacher, temperature=self.options.temperature)


class DacKl(OneVocabulary):
    """The forward KL over the dense part of the teacher's distribution; see `functional.dac_kl`."""

    name = "dac_kl"
    paper = "Liu et al. 2024 (Multi-Granularity Semantic Revision), arXiv:2407.10068"
    options_type = DacOptions
    choose = "one tokenizer, and a teacher whose long tail is noise to the student"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum the clipped divergence."""
        options = self.options
        return clipped.dac_kl(
            student,
            teacher,
            target,
            lower=options.lower,
            upper=options.upper,
            top_k=options.top_k,
            tail=options.tail,
            temperature=options.temperature,
        )


class SwappedKl(OneVocabulary):
    """The forward KL from a teacher set right by the text; see `functional.swapped_kl`."""

    name = "swapped_kl"
    paper = "Limantoro et al. 2025 (Swapped Logit Distillation), arXiv:2504.20108"
    options_type = SwappedOptions
    choose = "one tokenizer, and text that is right where the teacher may be wrong"

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> LossSum:
        """Sum the divergences from what was set right."""
        options = self.options
        return clipped.swapped_kl(
            student,
            teacher,
            target,
            student_weight=options.student_weight,
            temperature=options.temperature,
        )


CLASSICAL = (
    ForwardKl,
    ReverseKl,
    Jsd,
    SkewedKl,
    SkewedReverseKl,
    AdaptiveKl,
    TotalVariation,
    DacKl,
    SwappedKl,
)
"""Every objective of this module."""
