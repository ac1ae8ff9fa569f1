"""Plain values as they come from a recipe or a command line: what they should have been."""

import dataclasses
import difflib
import json
from typing import Any

from crosstill.errors import ConfigError


def unknown_key(where: str, key: str, known: Any) -> str:
    """Says that a key is unknown, and the nearest known one."""
    near = difflib.get_close_matches(str(key), list(known), n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)[:12])}"
    return f"{where}.{key} is not a setting: {hint}" if where else f"{key} is not a key: {hint}"


def wrong_type(setting: dataclasses.Field, value: Any) -> str | None:
    """Names the expected type where a value has clearly another one."""
    default = setting.default
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, int) and setting.type is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole else "a whole number"
    if isinstance(default, float):
        return None if is_number(value) else "a number"
    return None


def is_number(value: Any) -> bool:
    """Says whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def at_least(value: Any, least: int) -> bool:
    """Says whether a value is a number that is large enough."""
    return is_number(value) and value >= least


def as_dict(name: str, value: Any) -> dict[str, Any]:
    """Takes a dict, or the JSON text of one as it comes from a command line."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ConfigError(
                f"{name} is {value!r}, expected a mapping or JSON: {error}"
            ) from error
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{name} is {value!r}, expected a mapping")
    return value or {}
