"""What a recipe says of every objective: its weight, a number or a schedule over the steps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crosstill.errors import ConfigError

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class Schedule:
    """The weight of an objective as a function of the step.

    It goes from `start` at the first step to `end` at the last step of the first `over` of the
    run, and stays there. It has no state, so a resumed run goes on exactly.

    Attributes:
        shape: constant, linear or cosine; a constant schedule has `start` everywhere.
        start: weight of the first step, at least 0.
        end: weight from the end of the schedule on, at least 0.
        over: share of the run's steps, above 0 and at most 1.

    Raises:
        ConfigError: a value is outside its range, or the weight is 0 throughout.

    Source: linear and cosine, both ways, as in the recipes of arXiv:2503.20083.

    Example:
        >>> fade_in = Schedule("linear", start=0.0, end=1.0, over=0.5)
        >>> [fade_in.at(step, steps=10) for step in range(0, 10, 2)]
        [0.0, 0.5, 1.0, 1.0, 1.0]
    """

    shape: str = "constant"
    start: float = 1.0
    end: float = 1.0
    over: float = 1.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"schedule must be one of {', '.join(SHAPES)}; got {self.shape!r}")
        for name in ("start", "end"):
            value = {"start": self.start, "end": self.end}[name]
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"{name} must be at least 0 and finite; got {value}")
        if max(self.start, self.end) == 0.0:
            raise ConfigError("the weight must be above 0 somewhere; leave the objective out")
        if self.shape == "constant" and self.start != self.end:
            raise ConfigError(
                f"a constant schedule has one weight; got start {self.start} and end {self.end}. "
                "Set schedule: linear or cosine"
            )
        if not 0.0 < self.over <= 1.0:
            raise ConfigError(f"over must be above 0 and at most 1; got {self.over}")

    def at(self, step: int, steps: int) -> float:
        """Compute the weight of a step.

        Args:
            step: from 0 on.
            steps: of the whole run.
        """
        if self.shape == "constant":
            return self.start
        done = min(step / max(self.over * steps - 1.0, 1.0), 1.0)
        if self.shape == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return self.start * (1.0 - done) + self.end * done


def read_weight(where: str, value: Any) -> Schedule:
    """Read a weight as a recipe holds it: a number above 0, or the keys of a schedule.

    Args:
        where: what the weight is called in messages.
        value: such as `0.5` or `{"schedule": "linear", "start": 0, "end": 1, "over": 0.5}`.

    Raises:
        ConfigError: it is neither, or a key or a value is wrong.

    Example:
        >>> read_weight("sft.weight", {"schedule": "cosine", "start": 1, "end": 0}).at(0, 100)
        1.0
    """
    if isinstance(value, Mapping):
        return _read_schedule(where, value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(
            f"{where} must be a float, such as 1.0, or a schedule, such as {{schedule: linear, "
            f"start: 0, end: 1}}; got {value!r}"
        )
    if not 0.0 < value < float("inf"):
        raise ConfigError(
            f"{where} must be above 0 and finite; got {value}. "
            "Leave an objective out instead of giving it weight 0"
        )
    return Schedule(start=float(value), end=float(value))


def _read_schedule(where: str, value: Mapping[str, Any]) -> Schedule:
    unknown = set(value) - {"schedule", "start", "end", "over"}
    if unknown:
        raise ConfigError(
            f"{where} has no key {', '.join(sorted(map(str, unknown)))}; "
            "known: schedule, start, end, over"
        )
    numbers = {key: value[key] for key in ("start", "end", "over") if key in value}
    for key, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ConfigError(f"{where}.{key} must be a number; got {number!r}")
    shape = value.get("schedule", "linear")
    missing = [key for key in ("start", "end") if key not in numbers]
    if shape != "constant" and missing:
        raise ConfigError(f"{where} is a schedule without {' and '.join(missing)}")
    if shape == "constant":
        numbers.setdefault("end", numbers.get("start", 1.0))
        numbers.setdefault("start", numbers["end"])
    try:
        return Schedule(str(shape), **{key: float(number) for key, number in numbers.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def plain_weight(schedule: Schedule) -> float | dict[str, Any]:
    """Say a weight as JSON values: the number of a constant one, else the keys of a schedule."""
    if schedule.shape == "constant":
        return schedule.start
    return {
        "schedule": schedule.shape,
        "start": schedule.start,
        "end": schedule.end,
        "over": schedule.over,
    }


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Take from what a recipe says of an objective the options of the objective itself.

    Example:
        >>> own_options({"weight": 0.5, "teacher": "same", "temperature": 5.0})
        {'temperature': 5.0}
    """
    return {key: value for key, value in options.items() if key not in ("weight", "teacher")}
