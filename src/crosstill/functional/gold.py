"""GOLD: distributions of chunks, compared token by token where both vocabularies have the token.

Axes: N chunks, Vs and Vt vocabularies, S shared tokens, M other tokens of the chunks.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.eager import rows_in_block, sum_eagerly
from crosstill.functional.losses import LossSum
from crosstill.functional.matching import MatchedColumns
from crosstill.functional.numerics import EPSILON, FLOOR, accumulation_dtype, log1mexp
from crosstill.functional.uld import check_uld, sorted_l1

MERGES = ("causal", "observed", "bayesian")
"""How the tokens of a chunk become one distribution; the two last are TRL's."""

TAILS = ("pooled", "renormalised", "trl")
"""What becomes of the mass outside the shared tokens when those are compared."""

TRL_FLOOR = math.log(1e-8)
"""Nats: TRL 1.16 raises smaller probabilities to 1e-8."""


@dataclass(frozen=True)
class ChunkTokens:
    """The observed tokens of each chunk of one side.

    Attributes:
        first: id of the chunk's first token.
        alone: the chunk has no other token.
        rest: nats, log-probability of the chunk's other tokens, each given the tokens before it,
            at the temperature of the loss; 0.0 where there is none. Of the student: with graph.
    """

    first: Int64[Tensor, " N"]
    alone: Bool[Tensor, " N"]
    rest: Float[Tensor, " N"]


@dataclass(frozen=True)
class GoldForm:
    """The options of `gold_loss`.

    Attributes:
        merge: one of `MERGES`; says which row of a chunk the logits are (see `gold_loss`).
        beta: 0 is KL(teacher || student), 1 KL(student || teacher).
        tail: one of `TAILS`.
        weights: "share" weighs shared tokens by their part of the teacher's vocabulary and the
            others by what is left; "fixed" takes the two weights below.
        matched_weight: with "fixed", of the shared tokens.
        unmatched_weight: with "fixed", of the others.
        student_temperature: divides the student's logits.
        teacher_temperature: divides the teacher's.

    Raises:
        ConfigError: a value is outside its range.
    """

    merge: str = "causal"
    beta: float = 0.5
    tail: str = "pooled"
    weights: str = "share"
    matched_weight: float = 1.0
    unmatched_weight: float = 1.0
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        check_uld(self.student_temperature, self.teacher_temperature, 0)
        for name, value, known in (
            ("merge", self.merge, MERGES),
            ("tail", self.tail, TAILS),
            ("weights", self.weights, ("share", "fixed")),
        ):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}; got {value!r}")
        if not 0.0 <= self.beta <= 1.0:
            raise ConfigError(f"beta must be from 0 to 1; got {self.beta}")
        if not (0.0 <= self.matched_weight < math.inf and 0.0 <= self.unmatched_weight < math.inf):
            raise ConfigError(
                "matched_weight and unmatched_weight must be at least 0 and finite; got "
                f"{self.matched_weight} and {self.unmatched_weight}"
            )


def gold_loss(
    student_logits: Float[Tensor, "N Vs"],
    teacher_logits: Float[Tensor, "N Vt"],
    student_tokens: ChunkTokens,
    teacher_tokens: ChunkTokens,
    columns: MatchedColumns | None,
    form: GoldForm,
) -> LossSum:
    r"""Compare what both models expect at a chunk: shared tokens one by one, the others by rank.

    .. math:: \sum_n w_m \, D_\beta(p^T_n \,\|\, p^S_n)
              + w_u \sum_r \big| p^S_{n,(r)} - p^T_{n,(r)} \big|

    D compares the shared tokens, the sum runs over the ranks r of the tokens that one vocabulary
    alone has. Without `columns` all tokens are compared by rank.

    A chunk of several tokens needs one distribution. With merge "causal" the logits are of the row
    that predicts the chunk's first token, and its probability is split: the chunk itself, by the
    chain rule, becomes an event of its own, and the first token keeps what goes on otherwise. So
    every entry is the probability of something, and all sum to 1. A token that spells the whole
    chunk counts to that event on both sides. With "bayesian" the row is that of the last token and
    with "observed" the one after the first token, which is one too late; both are multiplied by
    the probability of the other tokens, and sum to no more than that.

    Args:
        student_logits: raw, the row of each chunk that `form.merge` asks for.
        teacher_logits: the same of the teacher; gets no gradient.
        student_tokens: what was observed on the student's side.
        teacher_tokens: the same of the teacher.
        columns: which tokens are shared; None compares all by rank.
        form: the options.

    Returns:
        The sum over chunks and their number. With `columns`, `sums` has "matched" and "unmatched",
        the two parts before their weights, and "unmatched_mass", the teacher's.

    Numerics: as `uld_loss`; the gradient is made in the forward pass. Log-probabilities below -1e4
    count as that and get no gradient (with tail "trl" below 1e-8).

    Source: TRL 1.16, GOLD; Patiño et al., "Unlocking On-Policy Distillation for Any Model Family".
    Oracle: tests/oracle/gold.py; tests/golden/trl_gold.json holds values of TRL itself.

    Example:
        >>> logits = torch.tensor([[0.7, 0.3]]).log()
        >>> one = ChunkTokens(torch.tensor([0]), torch.tensor([True]), torch.zeros(1))
        >>> loss = gold_loss(logits, logits.flip(1), one, one, None, GoldForm(merge="observed"))
        >>> loss.total, loss.count
        (tensor(0.), tensor(1.))
    """
    dtype = accumulation_dtype(student_logits, teacher_logits)
    matched = columns is not None
    sides = (student_tokens, teacher_tokens)

    def term(*parts: Tensor) -> Tensor:
        logits, rest, first, alone = (parts[k : k + 2] for k in (0, 2, 4, 6))
        temperatures = (form.student_temperature, form.teacher_temperature)
        student, teacher = (
            _Merged.of(logits[k].to(dtype) / temperatures[k], ChunkTokens(
                first[k], alone[k], rest[k].to(dtype)), form.merge)
            for k in range(2)
        )  # fmt: skip
        if columns is None:
            return sorted_l1(student.everything(), teacher.everything()).sum().unsqueeze(0)
        return _hybrid(student, teacher, columns, form)

    width = student_logits.shape[1] + teacher_logits.shape[1]
    sums = sum_eagerly(
        term,
        rows_in_block(width, student_logits.device),
        student_logits,
        teacher_logits.detach(),
        student_tokens.rest,
        teacher_tokens.rest.detach(),
        *(side.first for side in sides),
        *(side.alone for side in sides),
    )
    count = sums.new_full((), len(student_logits))
    names = ("matched", "unmatched", "unmatched_mass") if matched else ()
    return LossSum(sums[0], count, dict(zip(names, sums[1:].detach(), strict=True)))


@dataclass(frozen=True)
class _Merged:
    """One side's distributions of chunks, in nats.

    Attributes:
        token: of every token; with merge "causal" the chunk itself is taken out.
        chunk: of the chunk itself; None for merges that do not set it apart.
        lost: of everything that the entries do not hold.
        tokens: what was observed.
    """

    token: Tensor
    chunk: Tensor | None
    lost: Tensor
    tokens: ChunkTokens

    @classmethod
    def of(cls, logits: Tensor, tokens: ChunkTokens, merge: str) -> "_Merged":
        """Merge the tokens of the chunks."""
        token = torch.log_softmax(logits, -1).clamp(min=FLOOR)
        other = log1mexp(tokens.rest.clamp(min=FLOOR, max=-EPSILON)).masked_fill(
            tokens.alone, FLOOR
        )
        if merge != "causal":
            rest = tokens.rest.clamp(min=FLOOR)
            return cls(token + rest.unsqueeze(1), None, other, tokens)
        place = tokens.first.unsqueeze(1)
        first = token.gather(1, place).squeeze(1)
        chunk = first + tokens.rest.clamp(min=FLOOR)
        token = token.scatter(1, place, (first + other).unsqueeze(1))
        return cls(token, chunk, torch.full_like(chunk, FLOOR), tokens)

    def everything(self) -> Tensor:
        """Probabilities of all entries."""
        if self.chunk is None:
            return self.token.exp()
        return torch.cat([self.token, self.chunk.unsqueeze(1)], 1).exp()


def _hybrid(
    student: _Merged, teacher: _Merged, columns: MatchedColumns, form: GoldForm
) -> Float[Tensor, " 4"]:
    """The loss, its two parts, and the teacher's mass outside the shared tokens."""
    alone = student.token[:, columns.student_alone], teacher.token[:, columns.teacher_alone]
    tails = [
        torch.logaddexp(_logsumexp(rows), side.lost)
        for rows, side in zip(alone, (student, teacher), strict=True)
    ]
    shared = _shared(student, teacher, columns)
    if form.tail == "pooled":
        shared = [
            torch.cat([rows, tail.unsqueeze(1)], 1)
            for rows, tail in zip(shared, tails, strict=True)
        ]
    elif form.tail == "renormalised":
        shared = [rows - _logsumexp(rows).unsqueeze(1) for rows in shared]
    else:
        shared = [rows.clamp(min=TRL_FLOOR) for rows in shared]
    matched = jensen_shannon(shared[0], shared[1], form.beta, scaled=form.tail != "trl").sum()
    unmatched = sorted_l1(alone[0].exp(), alone[1].exp()).sum()
    if form.tail == "trl" and 0 in (alone[0].shape[1], alone[1].shape[1]):
        unmatched = unmatched * 0.0
    weights = (form.matched_weight, form.unmatched_weight)
    if form.weights == "share":
        share = len(columns.teacher) / max(teacher.token.shape[1], 1)
        weights = (share, 1.0 - share)
    loss = weights[0] * matched + weights[1] * unmatched
    return torch.stack([loss, matched, unmatched, tails[1].exp().sum()])


def _shared(student: _Merged, teacher: _Merged, columns: MatchedColumns) -> list[Tensor]:
    """Nats of the shared tokens of both sides and, where it is set apart, of the chunk."""
    rows = [student.token[:, columns.student], teacher.token[:, columns.teacher]]
    if student.chunk is None or teacher.chunk is None:
        return rows
    chunks = [student.chunk, teacher.chunk]
    nothing = rows[0].new_full((len(rows[0]), 1), FLOOR)
    rows = [torch.cat([side, nothing], 1) for side in rows]
    none = len(columns.student)
    slots = (columns.student_slot, columns.teacher_slot)
    for side, slot in zip((student.tokens, teacher.tokens), slots, strict=True):
        # A token that is the whole chunk: the other side's probability of it is the chunk's too.
        place = torch.where(side.alone, slot[side.first], none).unsqueeze(1)
        for k in range(2):
            chunks[k] = torch.logaddexp(chunks[k], rows[k].gather(1, place).squeeze(1))
            rows[k] = rows[k].scatter(1, place, nothing)
    return [
        torch.cat([side[:, :none], chunk.unsqueeze(1)], 1)
        for side, chunk in zip(rows, chunks, strict=True)
    ]


def _logsumexp(rows: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """`logsumexp` with -1e4 for a sum of nothing."""
    if rows.shape[1] == 0:
        return rows.new_full((len(rows),), FLOOR)
    return torch.logsumexp(rows, 1)


def jensen_shannon(
    student: Float[Tensor, "N K"],
    teacher: Float[Tensor, "N K"],
    beta: float,
    *,
    scaled: bool,
) -> Float[Tensor, " N"]:
    r"""Compute the generalised Jensen-Shannon divergence of rows of log-probabilities.

    .. math:: D_\beta = \frac{\beta \, KL(t \| m) + (1 - \beta) \, KL(s \| m)}{\beta (1 - \beta)},
              \quad m = \beta t + (1 - \beta) s

    Args:
        student: nats.
        teacher: nats.
        beta: from 0, which is KL(teacher || student), to 1, which is KL(student || teacher).
        scaled: divide by beta (1 - beta), so that both ends are limits. Without it the divergence
            goes to 0 towards either end, and is a KL at the end itself.

    Example:
        >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
        >>> [round(jensen_shannon(p, q, b, scaled=True).item(), 4) for b in (0.0, 0.001, 0.5)]
        [0.1308, 0.1308, 0.1353]
    """
    s, t = student.exp(), teacher.exp()
    if beta == 0.0:
        return (t * (teacher - student)).sum(1)
    if beta == 1.0:
        return (s * (student - teacher)).sum(1)
    mixed = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    each = beta * t * (teacher - mixed) + (1.0 - beta) * s * (student - mixed)
    return each.sum(1) / (beta * (1.0 - beta) if scaled else 1.0)
