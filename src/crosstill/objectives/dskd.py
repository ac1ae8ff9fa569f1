"""Dual-space distillation: each model's states are read by the other model's head."""

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional import dskd as F
from crosstill.functional.head import HeadMatrix, cut_head
from crosstill.functional.losses import LossSum, supervised_tokens
from crosstill.functional.rows import chunk_rows
from crosstill.functional.rowsum import check_temperature, sum_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.pair import ModelFacts, Pair
from crosstill.objectives.parts import linear, projected

_CHOICES = {
    "form": ("auto", "same", "cma", "eta"),
    "initialisation": ("auto", "random", "logits"),
    "targets": ("auto", "gold", "teacher"),
    "agreement": ("auto", "always", "never"),
}
_PUBLISHED = {
    "same": {"initialisation": "random", "targets": "gold", "agreement": "never"},
    "cma": {"initialisation": "random", "targets": "gold", "agreement": "always"},
    "eta": {"initialisation": "logits", "targets": "teacher", "agreement": "always"},
}


@dataclass(frozen=True)
class DskdOptions:
    """Options of `dskd`; `auto` is what was published for the form.

    Raises:
        ConfigError: a value is outside its range.
    """

    form: str = field(
        default="auto",
        metadata={"help": "same vocabulary, cma (attention), eta (equal tokens), or auto"},
    )
    temperature: float = field(
        default=2.0, metadata={"help": "divides the logits of both sides of each divergence"}
    )
    divergence: str = field(
        default="kl",
        metadata={"help": "kl, reverse_kl, jsd, skewed_kl or skewed_reverse_kl"},
    )
    initialisation: str = field(
        default="auto",
        metadata={"help": "of the projections: random, or logits (heads agree from the start)"},
    )
    targets: str = field(
        default="auto",
        metadata={"help": "what the projected teacher predicts: gold, or the teacher's likeliest"},
    )
    agreement: str = field(
        default="auto",
        metadata={"help": "always or never learn only where the projected teacher is right"},
    )

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"dskd.{name} must be one of {', '.join(known)}; got {value!r}")
        check_temperature(self.temperature)
        F.check_dskd_divergence(self.divergence)


@dataclass(frozen=True)
class _Spaces:
    """What `prepare` has found out about the pair.

    Attributes:
        options: with no `auto` left.
        student: the student's facts.
        teacher: the teacher's.
        heads: both heads, live.
        shared: int64 [S, 2], or None where no map of logits is used.
        inverse: [S, Dt], pseudo-inverse of the teacher's shared rows, or None likewise.
        student_id: int64 [Vt], the student's id of each teacher token, -1 where it has none.
    """

    options: DskdOptions
    student: ModelFacts
    teacher: ModelFacts
    heads: tuple[HeadMatrix, HeadMatrix]
    shared: Int64[Tensor, "S 2"] | None
    inverse: Float[Tensor, "S Dt"] | None
    student_id: Int64[Tensor, " Vt"]


class Dskd(Objective):
    """Distil in the student's space and in the teacher's; see `functional.dskd_loss`."""

    name = "dskd"
    paper = "Zhang et al. 2024, arXiv:2406.17328; v2: arXiv:2504.11426"
    needs = frozenset({"logits", "hidden"})
    options_type = DskdOptions
    cost = "each head runs once more, forward and backward; blocks of rows keep memory flat"
    choose = "when the teacher runs beside the student and its hidden states shall be used"
    keeps_hidden = True

    options: DskdOptions

    def __init__(self, options: DskdOptions) -> None:
        super().__init__(options)
        self._spaces: _Spaces | None = None

    def prepare(self, pair: Pair) -> None:
        """Choose the form and make the projections.

        Raises:
            ConfigError: a head that cannot be told apart from its body, a form that cannot work
                for this pair, or options that contradict the form.
        """
        heads = pair.student.head, pair.teacher.head
        if heads[0] is None or heads[1] is None:
            side = "student" if heads[0] is None else "teacher"
            raise ConfigError(
                f"dskd reads both heads, but the {side}'s cannot be told apart from its body (the "
                "log says why). Choose an objective that does not need it, such as alm"
            )
        shared = torch.tensor(pair.vocabulary.shared())
        with_rows = shared < torch.tensor([pair.student.vocab_size, pair.teacher.vocab_size])
        shared = shared[with_rows.all(1)]  # a tokenizer may know more ids than its model
        options = _resolved(self.options, pair, len(shared))
        _check(options, pair, len(shared))
        device = pair.teacher.input_embedding.device
        student_id = torch.full((pair.teacher.vocab_size,), F.NO_TARGET)
        student_id[shared[:, 1]] = shared[:, 0]
        by_logits = options.initialisation == "logits"
        shared = shared.to(device)
        self._spaces = _Spaces(
            options,
            pair.student,
            pair.teacher,
            (heads[0], heads[1]),
            shared if by_logits else None,
            F.pseudo_inverse(heads[1].weight[shared[:, 1]]) if by_logits else None,
            student_id.to(device),
        )
        self.parts = self._made(self._spaces)

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the rows of the student: equal tokens, or for `cma` supervised ones."""
        rows = self._attending(batch)[0] if self._attends else self._pairs(batch)[0]
        counted = rows.sum() if self._attends else torch.tensor(len(rows))
        return counted.float().to(signal.hidden.device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read the rows of supervised tokens and of tokens in a chunk."""
        return supervised_tokens(batch["student_labels"]) | (batch["student_chunk"] >= 0)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the three terms."""
        if self._attends:
            return self._by_attention(student, batch, signal)
        return self._by_pairs(student, batch, signal)

    # --- equal tokens: `same` and `eta` ---------------------------------------------------------

    def _pairs(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sequence, student row, teacher row and student token of chunks of one token each."""
        rows = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
        single = (rows.student_length == 1) & (rows.teacher_length == 1)
        which = rows.batch[single]
        token = batch["student_input_ids"][which, rows.student_end[single]]
        return which, rows.student_row[single], rows.teacher_row[single], token

    def _by_pairs(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        spaces = self._known()
        which, row, teacher_row, gold = self._pairs(batch)
        student_head, teacher_head = self._heads(student, signal)
        options = spaces.options

        def each(from_teacher, from_student, logits, which, teacher_row, gold):
            teacher_logits = signal.rows(which, teacher_row)
            target = gold
            if options.targets == "teacher":
                target = spaces.student_id[teacher_logits.argmax(1)]
            ce, kd, agrees = self._in_student_space(from_teacher, logits, target, student_head)
            back = self._in_teacher_space(from_student, teacher_logits, teacher_head)
            return [ce + kd + back, ce, kd, agrees, back]

        total, *terms = sum_rows(
            each,
            [
                self._to_student(signal.hidden[which, teacher_row]),
                self._to_teacher(student.hidden[which, row]),
                student.rows(which, row),
            ],
            [which, teacher_row, gold],
            width=self._width(),
        )
        return F.dskd_sum(total, tuple(terms), len(which))

    # --- attention between the sequences: `cma` -------------------------------------------------

    def _attending(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Which rows of each side predict a supervised token, in sequences where both have one."""
        sides = [
            supervised_tokens(batch[f"{side}_labels"])[:, 1:] for side in ("student", "teacher")
        ]
        both = sides[0].any(1, keepdim=True) & sides[1].any(1, keepdim=True)
        return sides[0] & both, sides[1] & both

    def _by_attention(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        inside = self._attending(batch)
        student_head, teacher_head = self._heads(student, signal)
        in_student, in_teacher = self._attended(student, batch, signal, inside)
        which, row = inside[0].nonzero(as_tuple=True)
        teacher_which, teacher_row = inside[1].nonzero(as_tuple=True)

        def in_student_space(states, logits, target):
            terms = self._in_student_space(states, logits, target, student_head)
            return [terms[0] + terms[1], *terms]

        def in_teacher_space(states, which, row):
            return [self._in_teacher_space(states, signal.rows(which, row), teacher_head)]

        total, *terms = sum_rows(
            in_student_space,
            [in_student[which, row], student.rows(which, row)],
            [batch["student_input_ids"][which, row + 1]],
            width=self._width(),
        )
        (back,) = sum_rows(
            in_teacher_space,
            [in_teacher[teacher_which, teacher_row]],
            [teacher_which, teacher_row],
            width=self._width(),
        )
        return F.dskd_sum(total + back, (*terms, back), len(which))

    def _attended(
        self,
        student: StudentScores,
        batch: PairBatch,
        signal: Signal,
        inside: tuple[Bool[Tensor, "B n"], Bool[Tensor, "B m"]],
    ) -> tuple[Float[Tensor, "B n Ds"], Float[Tensor, "B m Dt"]]:
        """The teacher as the student's positions see it, and the student as the teacher's do."""
        spaces, parts = self._known(), self._modules()
        dtype = parts["query"].get_parameter("weight").dtype
        now, after = _embedded(spaces.student, batch["student_input_ids"], dtype)
        query = projected(torch.cat([now, after], 2), parts["query"])
        now, after = _embedded(spaces.teacher, batch["teacher_input_ids"], dtype)
        key = torch.cat([now, after], 2)
        key = key / F.inside_deviation(key, inside[1])
        to_student, to_teacher = F.cross_model_attention(query, key, *inside)
        # what stands outside may be anything, NaN too, and zero times it too
        of_teacher = signal.hidden[:, :-1].masked_fill(~inside[1].unsqueeze(2), 0.0).to(dtype)
        of_teacher = of_teacher / F.inside_deviation(of_teacher, inside[1])
        of_teacher = of_teacher + after / F.inside_deviation(after, inside[1])
        of_student = student.hidden[:, :-1].masked_fill(~inside[0].unsqueeze(2), 0.0)
        return (
            to_student @ self._to_student(of_teacher),
            to_teacher @ self._to_teacher(of_student),
        )

    # --- both -----------------------------------------------------------------------------------

    @property
    def _attends(self) -> bool:
        return self._known().options.form == "cma"

    def _known(self) -> _Spaces:
        if self._spaces is None:
            raise ConfigError(
                "dskd reads both models' matrices; call Mix.prepare(model_pair(...)) first"
            )
        return self._spaces

    def _modules(self) -> nn.ModuleDict:
        assert isinstance(self.parts, nn.ModuleDict)  # noqa: S101  # made with the spaces
        return self.parts

    def _made(self, spaces: _Spaces) -> nn.ModuleDict:
        """The projections that are learned."""
        student, teacher = spaces.student, spaces.teacher
        like = student.input_embedding
        sizes = student.hidden_size, teacher.hidden_size
        by_logits = spaces.shared is not None
        down = linear(sizes[1], sizes[0], bias=not by_logits, seed=0, like=like)
        made = nn.ModuleDict({"teacher_to_student": down})
        if spaces.shared is not None:
            target = replace(spaces.heads[0], weight=spaces.heads[0].weight[spaces.shared[:, 0]])
            source = replace(spaces.heads[1], weight=spaces.heads[1].weight[spaces.shared[:, 1]])
            found = F.logit_projection(source, target, F.pseudo_inverse(target.weight))
            with torch.no_grad():
                down.weight.copy_(found.t())
        else:
            made["student_to_teacher"] = linear(*sizes, bias=True, seed=1, like=like)
        if spaces.options.form == "cma":
            wide = student.input_embedding.shape[1], teacher.input_embedding.shape[1]
            made["query"] = linear(2 * wide[0], 2 * wide[1], bias=True, seed=2, like=like)
        return made

    def _to_student(self, states: Float[Tensor, "*rows Dt"]) -> Float[Tensor, "*rows Ds"]:
        return projected(states.detach(), self._modules()["teacher_to_student"])

    def _to_teacher(self, states: Float[Tensor, "*rows Ds"]) -> Float[Tensor, "*rows Dt"]:
        """By the learned projection, or by the map of logits as the student's head stands now."""
        spaces = self._known()
        if spaces.shared is None or spaces.inverse is None:
            return projected(states, self._modules()["student_to_teacher"])
        with torch.no_grad():
            source = replace(spaces.heads[0], weight=spaces.heads[0].weight[spaces.shared[:, 0]])
            found = F.logit_projection(source, spaces.heads[1], spaces.inverse)
        return states.to(found.dtype) @ found

    def _heads(self, student: StudentScores, signal: Signal) -> tuple[HeadMatrix, HeadMatrix]:
        sizes = student.logits.shape[-1], signal.vocab_size
        heads = [
            cut_head(head, size, head.weight.dtype)
            for head, size in zip(self._known().heads, sizes, strict=True)
        ]
        return heads[0], heads[1]

    def _in_student_space(
        self, states: Tensor, logits: Tensor, target: Tensor, head: HeadMatrix
    ) -> tuple[Tensor, Tensor, Tensor]:
        options = self._known().options
        agreement = options.agreement == "always"
        return F.student_space(
            states, logits, target, head, options.temperature, options.divergence, agreement
        )

    def _in_teacher_space(self, states: Tensor, logits: Tensor, head: HeadMatrix) -> Tensor:
        options = self._known().options
        # the first paper keeps the forward divergence in the teacher's space, the second does not
        divergence = options.divergence if options.form == "eta" else "kl"
        return F.teacher_space(states, logits, head, options.temperature, divergence)

    def _width(self) -> int:
        spaces = self._known()
        return max(spaces.student.vocab_size, spaces.teacher.vocab_size)


def _resolved(options: DskdOptions, pair: Pair, shared: int) -> DskdOptions:
    """Put what was published in the place of every `auto`."""
    form = options.form
    if form == "auto":
        # with fewer shared tokens than dimensions they do not fix a map between the spaces
        form = "eta" if shared >= pair.student.hidden_size else "cma"
        form = "same" if pair.vocabulary.identical else form
    chosen = {
        name: published
        for name, published in _PUBLISHED[form].items()
        if getattr(options, name) == "auto"
    }
    return replace(options, form=form, **chosen)


def _check(options: DskdOptions, pair: Pair, shared: int) -> None:
    """Refuse what cannot work."""
    if options.form == "same" and not pair.vocabulary.identical:
        raise ConfigError(
            "dskd.form is same, but the vocabularies differ; set it to auto, eta or cma"
        )
    if options.form == "eta" and shared == 0:
        raise ConfigError("dskd.form is eta, but the vocabularies share no token; set it to cma")
    if options.form != "cma":
        return
    for name, only in (("initialisation", "random"), ("targets", "gold")):
        if getattr(options, name) != only:
            raise ConfigError(
                f"dskd.{name} must be {only} where form is cma, whose rows are mixtures of "
                f"positions; got {getattr(options, name)!r}. Set it to auto"
            )
    if pair.teacher.input_embedding.shape[1] != pair.teacher.hidden_size:
        raise ConfigError(
            "dskd.form cma adds the teacher's embeddings to its hidden states, but their sizes "
            f"differ ({pair.teacher.input_embedding.shape[1]} and {pair.teacher.hidden_size}); "
            "set form to eta"
        )


def _embedded(
    model: ModelFacts, ids: Int64[Tensor, "B T"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B n D"]]:
    """Embeddings of each row's own token and of the one it predicts, without a graph."""
    states = nn.functional.embedding(ids, model.input_embedding.detach()).to(dtype)
    return states[:, :-1], states[:, 1:]
