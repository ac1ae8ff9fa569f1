"""Held-out texts and prompts of a recipe: lists, or files of rows."""

from collections.abc import Mapping, Sequence
from typing import Any

from crosstill.data.read import read_dataset
from crosstill.errors import ConfigError

Messages = list[dict[str, Any]]


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
    return [row_text(row) for row in read_dataset(source)]


def read_prompts(prompts: Mapping[str, str | Sequence[Any]]) -> dict[str, list[str | Messages]]:
    """Reads prompts by kind, each from a list or from a file of rows.

    Of a row with messages the closing turns of the assistant are left out, of one with prompt and
    completion the completion: they are what the teacher writes.

    Raises:
        ConfigError: A prompt is neither text nor a list of messages, or a kind has none.

    Example:
        >>> read_prompts({"chat": [[{"role": "user", "content": "Hi"}]], "prose": ["Once"]})
        {'chat': [[{'role': 'user', 'content': 'Hi'}]], 'prose': ['Once']}
    """
    found = {kind: _prompts_of(kind, source) for kind, source in prompts.items()}
    for kind, group in found.items():
        if not group:
            raise ConfigError(f"prompts.{kind} is empty: give at least one prompt, or leave it out")
    return found


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


def row_prompt(row: Mapping[str, Any]) -> str | Messages:
    """What of a row comes before the answer.

    Example:
        >>> row_prompt({"prompt": "2+2=", "completion": "4"})
        '2+2='
    """
    if row.get("messages") is not None:
        messages = _plain(row["messages"])
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        return messages
    if row.get("prompt") is not None:
        prompt = row["prompt"]
        return prompt if isinstance(prompt, str) else _plain(prompt)
    return row["text"]


def _prompts_of(kind: str, source: str | Sequence[Any]) -> list[str | Messages]:
    if isinstance(source, str):
        return [row_prompt(row) for row in read_dataset(source)]
    if not isinstance(source, Sequence):
        raise ConfigError(f"prompts.{kind} is {source!r}, expected a file or a list of prompts")
    for prompt in source:
        if not isinstance(prompt, str) and not _is_messages(prompt):
            raise ConfigError(
                f"prompts.{kind} holds {prompt!r}, expected text or messages with role and content"
            )
    return [prompt if isinstance(prompt, str) else _plain(prompt) for prompt in source]


def _is_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in value
    )


def _plain(messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Messages without the keys that a table fills with None."""
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _contents(value: str | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(message["content"] for message in value if message.get("content"))
