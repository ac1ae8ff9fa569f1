"""The objectives: published training losses by name.

`methods()` says what exists; `create` makes one from its options; `create_mix` makes a weighted
sum of several from a mapping as a recipe holds it.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.objectives.alm import Alm, AlmOptions
from crosstill.objectives.base import Objective, PairBatch, Signal, StudentScores, StudentStates
from crosstill.objectives.cdm import Cdm
from crosstill.objectives.chunk_kl import ChunkKl
from crosstill.objectives.classical import CLASSICAL
from crosstill.objectives.dskd import Dskd
from crosstill.objectives.gold import Gold
from crosstill.objectives.hidden import Hidden
from crosstill.objectives.mined import Mined
from crosstill.objectives.mix import Mix, MixLoss
from crosstill.objectives.multilevelot import Multilevelot
from crosstill.objectives.pair import ModelFacts, Pair, VocabularyPair
from crosstill.objectives.prefix_kl import PrefixKl
from crosstill.objectives.schedule import Schedule, own_options, read_weight
from crosstill.objectives.seqkd import SeqKd
from crosstill.objectives.sft import Sft
from crosstill.objectives.simct import Simct
from crosstill.objectives.uld import Uld
from crosstill.objectives.views import MAIN
from crosstill.objectives.xtoken import Xtoken

__all__ = [
    "AlmOptions",
    "MethodInfo",
    "Mix",
    "MixLoss",
    "ModelFacts",
    "Objective",
    "OptionInfo",
    "Pair",
    "PairBatch",
    "Schedule",
    "Signal",
    "StudentScores",
    "StudentStates",
    "VocabularyPair",
    "create",
    "create_mix",
    "methods",
    "register",
]

_REGISTRY: dict[str, type[Objective]] = {}
_AnyObjective = TypeVar("_AnyObjective", bound=type[Objective])


@dataclass(frozen=True)
class OptionInfo:
    """One option of an objective: its name, default and one line of help."""

    name: str
    default: object
    help: str


@dataclass(frozen=True)
class MethodInfo:
    """What `crosstill methods` says of an objective.

    Attributes:
        name: how recipes call it.
        paper: where it was published.
        needs: what it reads from the teacher, sorted.
        options: name, default and help of each option.
        cost: one line on what it costs.
        choose: one line on when to choose it.
        fusable: it runs without ever holding the logits of a whole batch.
        one_vocabulary: it works only where both models have one vocabulary.
    """

    name: str
    paper: str
    needs: tuple[str, ...]
    options: tuple[OptionInfo, ...]
    cost: str
    choose: str
    fusable: bool
    one_vocabulary: bool


def register(objective: _AnyObjective) -> _AnyObjective:
    """Add an objective's class under its name; usable as a decorator.

    Raises:
        ConfigError: the name is taken, or an option lacks a default or a help text.
    """
    if objective.name in _REGISTRY:
        raise ConfigError(
            f"objective {objective.name!r} is already registered by "
            f"{_REGISTRY[objective.name].__qualname__}; choose another name"
        )
    for option in fields(objective.options_type):
        _option(objective.name, option)
    _REGISTRY[objective.name] = objective
    return objective


def methods() -> list[MethodInfo]:
    """List the objectives that exist, by name.

    Example:
        >>> "alm" in [method.name for method in methods()]
        True
    """
    return [
        MethodInfo(
            name=name,
            paper=objective.paper,
            needs=tuple(sorted(objective.needs)),
            options=tuple(_option(name, option) for option in fields(objective.options_type)),
            cost=objective.cost,
            choose=objective.choose,
            fusable=objective.fusable,
            one_vocabulary=objective.one_vocabulary,
        )
        for name, objective in sorted(_REGISTRY.items())
    ]


def create(name: str, **options: Any) -> Objective:
    """Make an objective from its name and options.

    Raises:
        ConfigError: no objective or option has that name (the nearest one is named), or a value
            is of the wrong type or out of range.

    Example:
        >>> create("alm", temperature=5.0).options.temperature
        5.0
    """
    if name not in _REGISTRY:
        raise ConfigError(_unknown("objective", name, list(_REGISTRY)))
    objective = _REGISTRY[name]
    known = {option.name: option for option in fields(objective.options_type)}
    for key, value in options.items():
        if key not in known:
            raise ConfigError(_unknown(f"option of {name}", key, list(known)))
        options[key] = _checked(f"{name}.{key}", value, known[key].default)
    return objective(objective.options_type(**options))


def create_mix(
    objectives: Mapping[str, Mapping[str, Any]],
    *,
    boundary_mask: Tensor | None = None,
    vocab_size: int | None = None,
) -> Mix:
    """Make a mix from a mapping: objective -> its options and, among them, its weight (1.0).

    Args:
        objectives: for instance `{"alm": {"temperature": 5.0}, "sft": {"weight": 0.5}}`. A weight
            may be a schedule, `{"schedule": "linear", "start": 0, "end": 1, "over": 0.5}`;
            `teacher` names the teacher that the objective reads, "main" or "same".
        boundary_mask: as in `Mix`.
        vocab_size: as in `Mix`.

    Raises:
        ConfigError: as `create` and `Mix`.

    Example:
        >>> create_mix({"sft": {"weight": 0.5}}).objectives["sft"][1]
        0.5
    """
    made = {
        name: (
            create(name, **own_options(options)),
            read_weight(f"{name}.weight", options.get("weight", 1.0)),
        )
        for name, options in objectives.items()
    }
    teachers = {name: str(options.get("teacher", MAIN)) for name, options in objectives.items()}
    return Mix(made, boundary_mask=boundary_mask, vocab_size=vocab_size, teachers=teachers)


def _option(method: str, option: Field) -> OptionInfo:
    if option.default is MISSING or not option.metadata.get("help"):
        raise ConfigError(
            f"option {option.name!r} of objective {method!r} needs a default and metadata['help']"
        )
    return OptionInfo(option.name, option.default, option.metadata["help"])


def _checked(where: str, value: Any, default: Any) -> Any:
    """Return the value in the type of the default; a whole number may stand for a float."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, type(default)):
        raise ConfigError(
            f"{where} must be a {type(default).__name__}, such as {default!r}; got {value!r}"
        )
    return value


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"there is no {kind} called {name!r}; {hint}known: {', '.join(sorted(known)) or 'none'}"


register(Alm)
register(Cdm)
register(Dskd)
register(Hidden)
register(PrefixKl)
register(SeqKd)
register(Sft)
for _classical in CLASSICAL:
    register(_classical)
register(ChunkKl)
register(Simct)
register(Xtoken)
register(Uld)
register(Mined)
register(Gold)
register(Multilevelot)
