"""A weighted mix of objectives, from logits or from hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional.fused import ChunkTerm, Head, LabelTerm, fused_head
from crosstill.functional.losses import LossSum
from crosstill.functional.row_head import fused_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores, StudentStates
from crosstill.objectives.pair import Pair
from crosstill.objectives.schedule import Schedule, read_weight
from crosstill.objectives.views import MAIN, SAME, TEACHERS, Signals, seen

Weights = Mapping[str, float | Tensor]
"""The weight of each objective in a step, by name."""


@dataclass(frozen=True)
class MixLoss:
    """What a mix gives for one micro-batch.

    Attributes:
        total: sum over objectives of weight * total / global count, with the graph. Summed over
            the micro-batches and ranks of a step it is the loss of the step.
        parts: each objective's own sum and count, detached, for metrics: a mean over a step is
            the sum of totals over the sum of counts.
    """

    total: Float[Tensor, ""]
    parts: dict[str, LossSum]

    def metrics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return (sum, count) by metric name, to be added over a step and then divided.

        `alm` is the mean divergence, `alm/gap` the mean |log p_T - log p_S| of a chunk in nats,
        `sft` the mean negative log-likelihood of a token in nats.
        """
        found = {}
        for name, part in self.parts.items():
            found[name] = (part.total, part.count)
            for key, value in part.sums.items():
                found[f"{name}/{key}"] = (value, part.count)
        return found


class Mix:
    """A weighted sum of objectives.

    The trainer makes one at its start and gives it what only tokenizers know: the student's
    boundary mask, `torch.from_numpy(token_bytes(student_tokenizer).boundary())`, and the number
    of ids the student's tokenizer has, `text_encoder(student_tokenizer).vocab_size`. The mask is
    moved to the device of the logits when it is first needed.

    Args:
        objectives: name -> (objective, weight). The name is the one metrics carry; the weight is
            a number or a `Schedule` over the steps of a run.
        boundary_mask: bool, one for each id of the student; needed by objectives whose `needs`
            has "boundary".
        vocab_size: ids of the student's tokenizer. Columns of the logits beyond it are cut.
        teachers: name -> which teacher the objective reads: "main", or "same", one that has the
            student's tokenizer and reads the student's own rendering. "main" where none is named.

    Raises:
        ConfigError: no objective, a weight that is not a positive finite number, a boundary mask
            that is missing, or a teacher for an objective that reads none.
    """

    def __init__(
        self,
        objectives: Mapping[str, tuple[Objective, float | Schedule]],
        *,
        boundary_mask: Bool[Tensor, " mask"] | None = None,
        vocab_size: int | None = None,
        teachers: Mapping[str, str] | None = None,
    ) -> None:
        if not objectives:
            raise ConfigError("expected at least one objective; got none. Add one, such as alm")
        self.schedules = {name: _schedule(name, weight) for name, (_, weight) in objectives.items()}
        self.teachers = {name: (teachers or {}).get(name, MAIN) for name in objectives}
        for name, (objective, _) in objectives.items():
            _check_teacher(name, objective, self.teachers[name])
            if "boundary" in objective.needs and boundary_mask is None:
                raise ConfigError(
                    f"objective {name!r} needs the student's boundary mask; got None. "
                    "Pass boundary_mask=torch.from_numpy(token_bytes(tokenizer).boundary())"
                )
        self.objectives = {
            name: (objective, self.schedules[name].end)
            for name, (objective, _) in objectives.items()
        }
        self.boundary_mask = boundary_mask
        self.vocab_size = vocab_size

    @property
    def needs(self) -> frozenset[str]:
        """Everything that the objectives read from the teachers."""
        return frozenset().union(*(objective.needs for objective, _ in self.objectives.values()))

    def needs_of(self, teacher: str) -> frozenset[str]:
        """Everything that the objectives read from one teacher."""
        return frozenset().union(*(objective.needs for objective in self.readers(teacher)))

    def readers(self, teacher: str) -> list[Objective]:
        """The objectives that are taught by one teacher."""
        names = [name for name, other in self.teachers.items() if other == teacher]
        return [self.objectives[name][0] for name in names]

    def weights(self, step: int, steps: int) -> dict[str, float]:
        """Compute the objectives' weights in a step.

        Args:
            step: from 0 on.
            steps: of the whole run.
        """
        return {name: schedule.at(step, steps) for name, schedule in self.schedules.items()}

    def alone(self, name: str) -> "Mix":
        """Make a mix of one of the objectives, with weight 1: its own loss, with its own graph."""
        return Mix(
            {name: (self.objectives[name][0], 1.0)},
            boundary_mask=self.boundary_mask,
            vocab_size=self.vocab_size,
            teachers=self.teachers,
        )

    @property
    def keeps_hidden(self) -> bool:
        """Whether an objective reads the student's hidden states."""
        return any(objective.keeps_hidden for objective, _ in self.objectives.values())

    @property
    def student_layers(self) -> tuple[int, ...]:
        """Which hidden states of the student are read, by index."""
        asked = [objective.layers()[0] for objective, _ in self.objectives.values()]
        return tuple(sorted({index for layers in asked for index in layers}))

    def teacher_layers(self, teacher: str = MAIN) -> tuple[int, ...]:
        """Which hidden states of a teacher are read, by index."""
        asked = [objective.layers()[1] for objective in self.readers(teacher)]
        return tuple(sorted({index for layers in asked for index in layers}))

    def prepare(self, pair: Pair | Mapping[str, Pair]) -> None:
        """Let every objective make what depends on the two models; once, before training.

        Args:
            pair: the student and its teacher; where there are several, a pair for each name.

        Raises:
            ConfigError: an objective cannot work for its pair, or there is none for its teacher.
        """
        pairs = {MAIN: pair} if isinstance(pair, Pair) else pair
        for name, (objective, _) in self.objectives.items():
            if self.teachers[name] not in pairs:
                raise _no_teacher(name, self.teachers[name])
            objective.prepare(pairs[self.teachers[name]])

    @property
    def parts(self) -> nn.ModuleDict:
        """What the objectives learn themselves, by name of the objective."""
        made = {name: objective.parts for name, (objective, _) in self.objectives.items()}
        return nn.ModuleDict({name: part for name, part in made.items() if part is not None})

    @property
    def can_fuse(self) -> bool:
        """Whether `from_hidden` works: at most one `alm`, at most one `sft`, others by rows."""
        objectives = [objective for objective, _ in self.objectives.values()]
        kinds = [type(one).fused_term for one in objectives if one.fusable]
        fusable = all(one.fusable or one.row_fusable for one in objectives)
        return fusable and len(set(kinds)) == len(kinds)

    @torch.no_grad()
    def counts(self, batch: PairBatch, signal: Signal | Signals) -> dict[str, Float[Tensor, ""]]:
        """Count what each objective will sum over, before the student runs.

        Add the counts over all micro-batches and ranks of a step, and hand the sums to
        `from_logits` or `from_hidden`: accumulation then changes no gradient.
        """
        return {
            name: objective.count(*self._seen(name, batch, signal))
            for name, (objective, _) in self.objectives.items()
        }

    def from_logits(
        self,
        logits: Float[Tensor, "B Ts V"],
        batch: PairBatch,
        signal: Signal | Signals,
        counts: Mapping[str, Float[Tensor, ""]],
        *,
        states: StudentStates | None = None,
        weights: Weights | None = None,
    ) -> MixLoss:
        """Compute the loss from the student's logits.

        Args:
            logits: raw, row t predicts token t + 1.
            batch: the collated batch.
            signal: the teacher's; where there are several, a signal for each name.
            counts: the whole step's, from `counts`.
            states: the student's hidden states, where `keeps_hidden` asks for them.
            weights: of this step, from `weights` or a weighting; the schedules' last where None.
        """
        scores: dict[str, StudentScores] = {}
        total, parts = torch.zeros((), device=logits.device), {}
        for name, (objective, _) in self.objectives.items():
            view, given = self._seen(name, batch, signal)
            teacher = self.teachers[name]
            if teacher not in scores:
                reads = [reader.reads(view) for reader in self.readers(teacher)]
                scores[teacher] = StudentScores(
                    logits,
                    view,
                    reads=torch.stack(reads).any(0),
                    boundary_mask=self._mask(logits.device),
                    vocab_size=self.vocab_size,
                    states=states,
                )
            part = objective.loss(scores[teacher], view, given)
            total = total + part.total * self._scale(name, counts, weights)
            parts[name] = _detached(part)
        return MixLoss(total, parts)

    def from_hidden(
        self,
        hidden: Float[Tensor, "B Ts D"],
        head: Head,
        batch: PairBatch,
        signal: Signal | Signals,
        counts: Mapping[str, Float[Tensor, ""]],
        *,
        weights: Weights | None = None,
    ) -> MixLoss:
        """Compute the same loss from the student's last hidden states, without its logits.

        Args:
            hidden: what the output matrix is applied to.
            head: the output matrix and what is done to the logits after it.
            batch: the collated batch.
            signal: the teacher's; where there are several, a signal for each name.
            counts: the whole step's, from `counts`.
            weights: of this step, as in `from_logits`; no gradient reaches them.

        Raises:
            ConfigError: an objective of the mix has no fused form (see `can_fuse`).
        """
        if not self.can_fuse:
            raise ConfigError(
                f"this mix ({', '.join(self.objectives)}) has no fused form: at most one alm, one "
                "sft and objectives that go by rows can be fused. Use from_logits"
            )
        total, parts = torch.zeros((), device=hidden.device), {}
        names: dict[type, str] = {}
        terms: list[ChunkTerm | LabelTerm] = []
        for name, (objective, _) in self.objectives.items():
            view, given = self._seen(name, batch, signal)
            scale = self._scale(name, counts, weights)
            if objective.fusable:
                terms.append(objective.fused_term(view, given, scale))
                names[type(terms[-1])] = name
                continue
            rows = objective.row_terms(view, given)
            part = fused_rows(hidden, head, rows, vocab_size=self.vocab_size)
            total = total + part.total * scale
            parts[name] = _detached(part)
        if terms:
            fused = fused_head(
                hidden,
                head,
                batch["student_input_ids"],
                *terms,
                boundary_mask=self._mask(hidden.device),
                vocab_size=self.vocab_size,
            )
            total = total + fused.total
            parts |= {names[kind]: part for kind, part in fused.parts.items()}
        return MixLoss(total, {name: parts[name] for name in self.objectives})

    def _scale(self, name: str, counts: Mapping[str, Tensor], weights: Weights | None) -> Tensor:
        weight = self.objectives[name][1] if weights is None else weights[name]
        return weight / counts[name].clamp(min=1.0)

    def _seen(
        self, name: str, batch: PairBatch, signal: Signal | Signals
    ) -> tuple[PairBatch, Signal]:
        """The batch as the objective's teacher reads it, and what that teacher gave."""
        teacher = self.teachers[name]
        signals = signal if isinstance(signal, Mapping) else {MAIN: signal}
        if teacher not in signals:
            raise _no_teacher(name, teacher)
        return seen(teacher, batch), signals[teacher]

    def _mask(self, device: torch.device) -> Tensor | None:
        if self.boundary_mask is not None and self.boundary_mask.device != device:
            self.boundary_mask = self.boundary_mask.to(device)
        return self.boundary_mask


def _schedule(name: str, weight: float | Schedule) -> Schedule:
    if isinstance(weight, Schedule):
        return weight
    return read_weight(f"the weight of objective {name!r}", weight)


def _check_teacher(name: str, objective: Objective, teacher: str) -> None:
    if teacher not in TEACHERS:
        raise ConfigError(
            f"objective {name!r} names the teacher {teacher!r}; known: {', '.join(TEACHERS)}"
        )
    if teacher == SAME and not objective.needs:
        raise ConfigError(
            f"objective {name!r} reads nothing of a teacher; got teacher: {teacher}. Remove it"
        )


def _no_teacher(name: str, teacher: str) -> ConfigError:
    return ConfigError(
        f"objective {name!r} reads the teacher {teacher!r}, but none was given under this name. "
        "Give same_tokenizer_teacher to the trainer or the recipe, or remove `teacher` from the "
        "objective"
    )


def _detached(part: LossSum) -> LossSum:
    return LossSum(part.total.detach(), part.count.detach(), part.sums)
