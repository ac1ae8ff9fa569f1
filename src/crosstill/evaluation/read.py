"""Prompts for a teacher to write from: from a file, or as a recipe lists them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crosstill.data.jsonrows import JsonError, Place, json_lines, strict_json
from crosstill.data.read import read_dataset
from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.prompts import Prompt
from crosstill.text.rows import RowFault

_EXPECTED = 'a row with "prompt" or "text", or with "messages" that end with the user'


def read_prompts(source: str | Path | Sequence[Any], name: str = "prompts") -> list[Prompt]:
    """The prompts of a file or a data set, or of a list as it stands in a recipe.

    A row is `{"prompt": text or messages}`, `{"messages": [...]}` or `{"text": ...}`; what the
    assistant says last is left out, for that is what the teacher writes. A `.txt` file has one
    prompt a line.

    Args:
        source: a `.jsonl` or `.txt` file, whatever else `read_dataset` reads, or a list.
        name: what errors call a list.

    Raises:
        ConfigError: no such file, or a list that holds something else.
        DataError: a bad row, or no prompt in the file; the message names file and line.

    Example:
        >>> read_prompts(["Once upon a time", [{"role": "user", "content": "Hello"}]])
        ['Once upon a time', [{'role': 'user', 'content': 'Hello'}]]
    """
    if isinstance(source, str | Path):
        prompts = _from_file(Path(source).expanduser(), str(source))
        if not prompts:
            raise DataError(f"{source}: expected prompts, got none.")
        return prompts
    if not isinstance(source, Sequence) or not source:
        raise ConfigError(f"{name}: expected a file or a list of prompts, got {source!r}.")
    try:
        return [_prompt(item) for item in source]
    except RowFault as fault:
        raise ConfigError(f"{name}: {fault}") from fault


def _from_file(path: Path, name: str) -> list[Prompt]:
    suffix = path.suffix.lower()
    if suffix == ".txt" and path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: expected UTF-8, got other bytes at {error.start}.") from error
        return [line for line in lines if line.strip()]
    if suffix in (".jsonl", ".ndjson") and path.is_file():
        return [_read_line(raw, place) for place, raw in json_lines(path)]
    rows = read_dataset(name)
    return [_placed(row, Place(name, number)) for number, row in enumerate(rows, 1)]


def _read_line(raw: bytes, place: Place) -> Prompt:
    try:
        value = strict_json(raw)
    except JsonError as fault:
        raise place.error(fault, fault.column) from fault
    return _placed(value, place)


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
        raise RowFault("malformed", f"expected {_EXPECTED}, got {value!r:.80}.")
    turns = [{key: _unicode(turn.get(key)) for key in ("role", "content")} for turn in value]
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise RowFault("empty", f"expected {_EXPECTED}, got no turn before the answer.")
    return turns


def _unicode(value: Any) -> str:
    if not isinstance(value, str):
        raise RowFault("malformed", f"expected text, got {value!r:.80}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowFault(
            "bad_unicode", f"expected text, got a lone surrogate at character {error.start}."
        ) from error
    return value
