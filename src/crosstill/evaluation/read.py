"""Prompts for a teacher to write from: from a file, or as a recipe lists them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosstill.data.jsonrows import JsonError, Place, json_lines, strict_json
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.prompts import Prompt
from crosstill.text.rows import RowFault

_EXPECTED = 'a row with "prompt" or "text", or with "messages" that end with the user'


def read_prompts(source: str | Path | Sequence[Any]) -> list[Prompt]:
    """The prompts of a file, or of a list as it stands in a recipe.

    A `.jsonl` file has one row a line: `{"prompt": text or messages}`, `{"messages": [...]}` or
    `{"text": ...}`. A `.txt` file has one prompt a line. Messages end before an answer: a last
    turn of the assistant is left out.

    Raises:
        ConfigError: no such file, or a file of another kind.
        DataError: a bad row, or no prompt at all; the message names file and line.

    Example:
        >>> read_prompts(["Once upon a time", [{"role": "user", "content": "Hello"}]])
        ['Once upon a time', [{'role': 'user', 'content': 'Hello'}]]
    """
    if isinstance(source, str | Path):
        prompts, name = _from_file(Path(source).expanduser()), str(source)
    else:
        name = "prompts"
        places = [Place(name, number) for number in range(1, len(source) + 1)]
        prompts = [_placed(item, place) for item, place in zip(source, places, strict=True)]
    if not prompts:
        raise DataError(f"{name}: expected prompts, got none.")
    return prompts


def _from_file(path: Path) -> list[Prompt]:
    if not path.is_file():
        raise ConfigError(f"{path}: expected a file of prompts, got none there.")
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8, got other bytes at {error.start}.") from error
        return [line for line in lines if line.strip()]
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise ConfigError(f"{path}: expected .jsonl or .txt, got {path.suffix or 'no suffix'}.")
    prompts = []
    for place, raw in json_lines(path):
        try:
            value = strict_json(raw)
        except JsonError as fault:
            raise place.error(fault, fault.column) from fault
        prompts.append(_placed(value, place))
    return prompts


def _placed(value: Any, place: Place) -> Prompt:
    try:
        return _prompt(value)
    except RowFault as fault:
        raise place.error(fault) from fault


def _prompt(value: Any) -> Prompt:
    if isinstance(value, dict):
        found = [value[key] for key in ("prompt", "messages", "text") if value.get(key) is not None]
        if not found:
            raise RowFault("malformed", f"expected {_EXPECTED}, got the keys {sorted(value)[:9]}.")
        value = found[0]
    if isinstance(value, str):
        return _unicode(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise RowFault("malformed", f"expected {_EXPECTED}, got {type(value).__name__}.")
    turns = [{key: _unicode(turn.get(key)) for key in ("role", "content")} for turn in value]
    if turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns:
        raise RowFault("empty", f"expected {_EXPECTED}, got no turn before the answer.")
    return turns


def _unicode(value: Any) -> str:
    if not isinstance(value, str):
        raise RowFault("malformed", f"expected text, got {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowFault(
            "bad_unicode", f"expected text, got a lone surrogate at character {error.start}."
        ) from error
    return value
