"""A weighted mix of objectives, from logits or from hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional.fused import ChunkTerm, Head, LabelTerm, fused_head
from crosstill.functional.losses import LossSum
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores, StudentStates
from crosstill.objectives.pair import Pair


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
        objectives: name -> (objective, weight). The name is the one metrics carry.
        boundary_mask: bool, one for each id of the student; needed by objectives whose `needs`
            has "boundary".
        vocab_size: ids of the student's tokenizer. Columns of the logits beyond it are cut.

    Raises:
        ConfigError: no objective, a weight that is not a positive finite number, or a boundary
            mask that is missing.
    """

    def __init__(
        self,
        objectives: Mapping[str, tuple[Objective, float]],
        *,
        boundary_mask: Bool[Tensor, " mask"] | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if not objectives:
            raise ConfigError("expected at least one objective; got none. Add one, such as alm")
        for name, (objective, weight) in objectives.items():
            if not 0.0 < weight < float("inf"):
                raise ConfigError(
                    f"the weight of objective {name!r} must be above 0 and finite; got {weight}. "
                    "Leave an objective out instead of giving it weight 0"
                )
            if "boundary" in objective.needs and boundary_mask is None:
                raise ConfigError(
                    f"objective {name!r} needs the student's boundary mask; got None. "
                    "Pass boundary_mask=torch.from_numpy(token_bytes(tokenizer).boundary())"
                )
        self.objectives = dict(objectives)
        self.boundary_mask = boundary_mask
        self.vocab_size = vocab_size

    @property
    def needs(self) -> frozenset[str]:
        """Everything that the objectives read from the teacher."""
        return frozenset().union(*(objective.needs for objective, _ in self.objectives.values()))

    @property
    def keeps_hidden(self) -> bool:
        """Whether an objective reads the student's hidden states."""
        return any(objective.keeps_hidden for objective, _ in self.objectives.values())

    @property
    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which hidden states of the student and of the teacher are read, by index."""
        asked = [objective.layers() for objective, _ in self.objectives.values()]
        student, teacher = ({i for pair in asked for i in pair[side]} for side in (0, 1))
        return tuple(sorted(student)), tuple(sorted(teacher))

    def prepare(self, pair: Pair) -> None:
        """Let every objective make what depends on the two models; once, before training.

        Raises:
            ConfigError: an objective cannot work for this pair.
        """
        for objective, _ in self.objectives.values():
            objective.prepare(pair)

    @property
    def parts(self) -> nn.ModuleDict:
        """What the objectives learn themselves, by name of the objective."""
        made = {name: objective.parts for name, (objective, _) in self.objectives.items()}
        return nn.ModuleDict({name: part for name, part in made.items() if part is not None})

    @property
    def can_fuse(self) -> bool:
        """Whether `from_hidden` works: at most one `alm`, at most one `sft`, nothing else."""
        kinds = [objective.name for objective, _ in self.objectives.values()]
        fusable = all(objective.fusable for objective, _ in self.objectives.values())
        return fusable and len(set(kinds)) == len(kinds)

    @torch.no_grad()
    def counts(self, batch: PairBatch, signal: Signal) -> dict[str, Float[Tensor, ""]]:
        """Count what each objective will sum over, before the student runs.

        Add the counts over all micro-batches and ranks of a step, and hand the sums to
        `from_logits` or `from_hidden`: accumulation then changes no gradient.
        """
        return {
            name: objective.count(batch, signal) for name, (objective, _) in self.objectives.items()
        }

    def from_logits(
        self,
        logits: Float[Tensor, "B Ts V"],
        batch: PairBatch,
        signal: Signal,
        counts: Mapping[str, Float[Tensor, ""]],
        *,
        states: StudentStates | None = None,
    ) -> MixLoss:
        """Compute the loss from the student's logits.

        Args:
            logits: raw, row t predicts token t + 1.
            batch: the collated batch.
            signal: the teacher's.
            counts: the whole step's, from `counts`.
            states: the student's hidden states, where `keeps_hidden` asks for them.
        """
        reads = [objective.reads(batch) for objective, _ in self.objectives.values()]
        scores = StudentScores(
            logits,
            batch,
            reads=torch.stack(reads).any(0),
            boundary_mask=self._mask(logits.device),
            vocab_size=self.vocab_size,
            states=states,
        )
        total, parts = torch.zeros((), device=logits.device), {}
        for name, (objective, _) in self.objectives.items():
            part = objective.loss(scores, batch, signal)
            total = total + part.total * self._scale(name, counts)
            parts[name] = _detached(part)
        return MixLoss(total, parts)

    def from_hidden(
        self,
        hidden: Float[Tensor, "B Ts D"],
        head: Head,
        batch: PairBatch,
        signal: Signal,
        counts: Mapping[str, Float[Tensor, ""]],
    ) -> MixLoss:
        """Compute the same loss from the student's last hidden states, without its logits.

        Args:
            hidden: what the output matrix is applied to.
            head: the output matrix and what is done to the logits after it.
            batch: the collated batch.
            signal: the teacher's.
            counts: the whole step's, from `counts`.

        Raises:
            ConfigError: an objective of the mix has no fused form (see `can_fuse`).
        """
        if not self.can_fuse:
            raise ConfigError(
                f"this mix ({', '.join(self.objectives)}) has no fused form: at most one alm and "
                "one sft can be fused. Use from_logits"
            )
        names: dict[type, str] = {}
        terms: list[ChunkTerm | LabelTerm] = []
        for name, (objective, _) in self.objectives.items():
            terms.append(objective.fused_term(batch, signal, self._scale(name, counts)))
            names[type(terms[-1])] = name
        fused = fused_head(
            hidden,
            head,
            batch["student_input_ids"],
            *terms,
            boundary_mask=self._mask(hidden.device),
            vocab_size=self.vocab_size,
        )
        parts = {names[kind]: part for kind, part in fused.parts.items()}
        return MixLoss(fused.total, parts)

    def _scale(self, name: str, counts: Mapping[str, Tensor]) -> Tensor:
        return self.objectives[name][1] / counts[name].clamp(min=1.0)

    def _mask(self, device: torch.device) -> Tensor | None:
        if self.boundary_mask is not None and self.boundary_mask.device != device:
            self.boundary_mask = self.boundary_mask.to(device)
        return self.boundary_mask


def _detached(part: LossSum) -> LossSum:
    return LossSum(part.total.detach(), part.count.detach(), part.sums)
