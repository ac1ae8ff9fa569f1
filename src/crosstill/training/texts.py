"""Held-out texts and prompts of a recipe: lists, or files of rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from crosstill.data.read import read_dataset
from crosstill.evaluation.prompts import Prompt
from crosstill.evaluation.read import read_prompts as read_kind


def read_texts(source: str | Sequence[str]) -> list[str]:
    """Reads plain texts for bits per byte.

    Args:
        source: A list of texts, or a file of rows. A row with messages gives their contents, one
            with prompt and completion gives both, joined.

    Example:
        >>> read_texts(["one", "two"])
        ['one', 'two']
    """
    if not isinstance(source, str):
        return [str(text) for text in source]
    rows = cast(Iterable[Any], read_dataset(source))  # mistyped upstream
    return [row_text(row) for row in rows]


def read_prompts(prompts: Mapping[str, str | Sequence[Any]]) -> dict[str, list[Prompt]]:
    """Reads prompts by kind, each from a list or from a file; see `evaluation.read.read_prompts`.

    Raises:
        ConfigError: A prompt is neither text nor a list of messages, or a kind has none.
        DataError: A file has a bad row, or no prompt.

    Example:
        >>> read_prompts({"chat": [[{"role": "user", "content": "Hi"}]], "prose": ["Once"]})
        {'chat': [[{'role': 'user', 'content': 'Hi'}]], 'prose': ['Once']}
    """
    return {kind: read_kind(source, f"prompts.{kind}") for kind, source in prompts.items()}


def row_text(row: Mapping[str, Any]) -> str:
    """The text of a row, whatever its shape.

    Example:
        >>> row_text({"prompt": "2+2=", "completion": "4"})
        '2+2=4'
    """
    if row.get("messages") is not None:
        return _contents(row["messages"])
    if row.get("prompt") is not None:
        return _contents(row["prompt"]) + _contents(row.get("completion") or "")
    return row["text"]


def _contents(value: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(message["content"] for message in value if message.get("content"))
