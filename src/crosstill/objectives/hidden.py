"""Hidden states: where both models have read the same bytes, their states shall be alike."""

import re
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional.hidden import check_hidden_distance, hidden_loss
from crosstill.functional.losses import LossSum
from crosstill.functional.rows import ChunkRows, chunk_rows
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores
from crosstill.objectives.pair import Pair
from crosstill.objectives.parts import linear, projected

_PAIRS = re.compile(r"\d+:\d+(,\d+:\d+)*")
_PROJECTIONS = ("auto", "none", "linear")


@dataclass(frozen=True)
class HiddenOptions:
    """Options of `hidden`.

    Raises:
        ConfigError: a value is outside its range.
    """

    layers: str = field(
        default="last",
        metadata={"help": "last, even, or pairs of hidden states student:teacher as 6:12,12:24"},
    )
    distance: str = field(
        default="normalised_mse",
        metadata={"help": "mse, cosine or normalised_mse (divided by the teacher's mean square)"},
    )
    projection: str = field(
        default="auto",
        metadata={"help": "none, linear, or auto: a linear layer where the sizes differ"},
    )

    def __post_init__(self) -> None:
        check_hidden_distance(self.distance)
        if self.projection not in _PROJECTIONS:
            raise ConfigError(
                f"hidden.projection must be one of {', '.join(_PROJECTIONS)}; "
                f"got {self.projection!r}"
            )
        if self.layers not in ("last", "even") and not _PAIRS.fullmatch(self.layers):
            raise ConfigError(
                "hidden.layers must be last, even, or pairs student:teacher such as 6:12,12:24; "
                f"got {self.layers!r}"
            )


class Hidden(Objective):
    """Match hidden states at the last token of every chunk; see `functional.hidden_loss`.

    With several pairs of layers the loss of a chunk is the mean over them.
    """

    name = "hidden"
    paper = "Minixhofer, Vulić, Ponti 2025, arXiv:2503.20083, hidden-state alignment"
    needs = frozenset({"hidden"})
    options_type = HiddenOptions
    cost = "little: states at chunk ends; with a projection, a small matrix product"
    choose = "beside alm when a model is taught from itself; alone it does not teach the head"
    keeps_hidden = True
    exempt = {  # noqa: RUF012
        "test_it_reads_supervised_tokens_alone": "it reads hidden states and no token's probability"
    }

    options: HiddenOptions

    def __init__(self, options: HiddenOptions) -> None:
        super().__init__(options)
        self._layers: tuple[tuple[int, int], ...] = ()

    def prepare(self, pair: Pair) -> None:
        """Choose the layers, and make the projections if the sizes or the options ask for them.

        Raises:
            ConfigError: a layer that does not exist, or sizes that differ without a projection.
        """
        self._layers = _layer_pairs(
            self.options.layers, pair.student.num_layers, pair.teacher.num_layers
        )
        sizes = pair.student.hidden_size, pair.teacher.hidden_size
        if self.options.projection == "none" and sizes[0] != sizes[1]:
            raise ConfigError(
                f"the hidden sizes differ ({sizes[0]} student, {sizes[1]} teacher) and "
                "hidden.projection is none; set it to auto or linear"
            )
        if self.options.projection == "linear" or sizes[0] != sizes[1]:
            count = max(len(self._layers), 1)
            like = pair.student.input_embedding
            self.parts = nn.ModuleList(
                linear(*sizes, bias=True, seed=index, like=like) for index in range(count)
            )

    def layers(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Say which hidden states are read beside the last."""
        return tuple(s for s, _ in self._layers), tuple(t for _, t in self._layers)

    def rows(self, batch: PairBatch) -> ChunkRows:
        """List the chunks that both models have read."""
        return chunk_rows(batch["student_chunk"], batch["teacher_chunk"])

    def count(self, batch: PairBatch, signal: Signal) -> Float[Tensor, ""]:
        """Count the chunks."""
        return torch.tensor(float(len(self.rows(batch).batch)), device=signal.hidden.device)

    def reads(self, batch: PairBatch) -> Bool[Tensor, "B Ts"]:
        """Read no log-probability: the states stand before the head."""
        return torch.zeros_like(batch["student_chunk"], dtype=torch.bool)

    def loss(self, student: StudentScores, batch: PairBatch, signal: Signal) -> LossSum:
        """Sum the distance over the chunks' last tokens."""
        rows = self.rows(batch)
        states = [(student.hidden, signal.hidden)]
        if self._layers:
            states = [(student.layers[s], signal.layers[t]) for s, t in self._layers]
        parts = [
            hidden_loss(
                self._projected(index, of_student[rows.batch, rows.student_end]),
                of_teacher[rows.batch, rows.teacher_end],
                distance=self.options.distance,
            )
            for index, (of_student, of_teacher) in enumerate(states)
        ]
        total = torch.stack([part.total for part in parts]).mean()
        return LossSum(total, parts[0].count)

    def _projected(self, index: int, states: Float[Tensor, "N Ds"]) -> Float[Tensor, "N D"]:
        if self.parts is None:
            return states
        return projected(states, self.parts.get_submodule(str(index)))


def _layer_pairs(layers: str, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Indices of hidden states; none for what enters the heads.

    Raises:
        ConfigError: a layer that does not exist.
    """
    if layers == "last":
        return ()
    if layers == "even":
        return tuple((i, round(i * teacher / student)) for i in range(1, student + 1))
    numbers = [tuple(int(index) for index in part.split(":")) for part in layers.split(",")]
    for s, t in numbers:
        if s > student or t > teacher:
            raise ConfigError(
                f"hidden.layers asks for the pair {s}:{t}, but hidden states go from 0 (the "
                f"embedding) to {student} in the student and to {teacher} in the teacher"
            )
    return tuple((s, t) for s, t in numbers)
