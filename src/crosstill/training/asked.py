"""The objectives that a recipe asks for, as plain values."""

from typing import Any

from crosstill.errors import ConfigError
from crosstill.objectives import create
from crosstill.objectives.schedule import own_options, plain_weight, read_weight
from crosstill.objectives.views import MAIN, TEACHERS
from crosstill.training.values import as_dict, at_least, is_number
from crosstill.training.weighting import WEIGHTINGS


def parse_objectives(value: Any) -> dict[str, dict[str, Any]]:
    """Resolves the objectives to `{name: {"weight": w, option: value, ...}}`.

    Example:
        >>> parse_objectives({"alm": {"temperature": 10}})
        {'alm': {'weight': 1.0, 'temperature': 10}}

    Raises:
        ConfigError: It is neither a name, names joined by +, nor a mapping; or a weight is
            neither a positive number nor a schedule.
    """
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = as_dict("objectives", value)
    if isinstance(value, str):
        value = {name.strip(): {} for name in value.split("+")}
    if not isinstance(value, dict) or not value or not all(value):
        raise ConfigError(
            f"objectives is {value!r}, expected a name, names joined by + or a mapping such as "
            f"{{alm: {{weight: 1.0, temperature: 100}}}}; `crosstill methods` lists the names"
        )
    resolved = {}
    for name, options in value.items():
        options = {"weight": options} if is_number(options) else dict(options or {})
        weight = read_weight(f"objectives.{name}.weight", options.pop("weight", 1.0))
        resolved[name] = {"weight": plain_weight(weight), **options}
    return resolved


def wrong_objectives(objectives: dict[str, dict[str, Any]]) -> list[str]:
    """Says which objectives or options do not exist or are out of range."""
    problems = []
    for name, options in objectives.items():
        try:
            create(name, **own_options(options))
        except ConfigError as error:
            problems.append(str(error))
        teacher = options.get("teacher", MAIN)
        if teacher not in TEACHERS:
            known = " | ".join(TEACHERS)
            problems.append(f"objectives.{name}.teacher is {teacher!r}: {known}")
    return problems


def wrong_weighting(weighting: str, objectives: dict[str, dict[str, Any]]) -> list[str]:
    """Says why a way of weighting cannot work with these objectives."""
    if weighting not in WEIGHTINGS:
        return [f"weighting is {weighting!r}: {' | '.join(WEIGHTINGS)}"]
    if weighting != "fixed" and len(objectives) < 2:
        (name,) = objectives
        return [
            f"weighting {weighting} balances objectives against each other, and {name} stands "
            "alone: add another, or set weighting: fixed"
        ]
    return []


def wrong_numbers(gradnorm_alpha: float) -> list[str]:
    """Says which numbers of a weighting are out of range."""
    if at_least(gradnorm_alpha, 0):
        return []
    return [f"gradnorm_alpha is {gradnorm_alpha!r}: at least 0"]


def wrong_rate(name: str, rate: float | None) -> list[str]:
    """Says that a learning rate of its own is out of range."""
    if rate is None or (at_least(rate, 0) and rate > 0):
        return []
    return [f"{name} is {rate!r}: above 0"]
