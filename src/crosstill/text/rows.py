"""What one row of data says, before any model reads it.

A row is one of `{"messages": [{"role", "content"}, ...]}`, `{"prompt", "completion"}` (both strings
or both lists of messages) or `{"text"}`; looked for in this order. Columns that hold `None` are
absent (a table has every column in every row).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from crosstill.errors import ConfigError, DataError

LossOn = Literal["completion", "assistant", "all"]
ROW_COLUMNS = ("messages", "prompt", "completion", "text", "tools", "chat_template_kwargs")
EXPECTED = 'a row with "messages", or "prompt" and "completion", or "text"'


class RowFault(DataError):  # noqa: N818  (a fault of a row, not of the program)
    """One row cannot be used; `reason` is the word it is counted under.

    Reasons raised here: `malformed`, `bad_unicode`, `empty`. Rendering adds `template`,
    `unknown_token`, `unspellable`; pairing adds `unaligned`, `too_long`, `unsupervised`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return RowFault, (self.reason, str(self))


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, what is said (`None`: nothing but extras), other keys (tool calls)."""

    role: str
    content: str | None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The message as a chat template expects it."""
        content = {} if self.content is None else {"content": self.content}
        return {"role": self.role, **content, **self.extra}


@dataclass(frozen=True)
class Conversation:
    """A row in one shape: turns, where the completion begins, and whether a template is used.

    `plain` rows are one text: their "messages" are consecutive pieces of it, with the roles
    `text`, or `prompt` and `completion`.
    """

    messages: tuple[Message, ...]
    plain: bool
    completion_from: int | None = None
    tools: tuple[Any, ...] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def supervised(self, loss_on: LossOn) -> frozenset[int]:
        """Indices of the messages that are taught.

        `completion`: the completion (its assistant turns), else the last assistant turn, or the
        text. `assistant`: every assistant turn. `all`: every message.

        Example:
            >>> row = {"prompt": "2+2=", "completion": "4"}
            >>> sorted(parse_row(row).supervised("completion"))
            [1]
        """
        everything = frozenset(range(len(self.messages)))
        if loss_on == "all" or (len(self.messages) == 1 and self.plain):
            return everything
        if self.plain:
            return frozenset({1})
        assistant = frozenset(i for i in everything if self.messages[i].role == "assistant")
        if loss_on == "assistant":
            return assistant
        if self.completion_from is None:
            return frozenset({max(assistant)}) if assistant else frozenset()
        return frozenset(i for i in assistant if i >= self.completion_from)


def check_loss_on(loss_on: str) -> None:
    """Raise ConfigError unless `loss_on` is one of the three known words."""
    if loss_on not in ("completion", "assistant", "all"):
        raise ConfigError(
            f"loss_on: expected 'completion', 'assistant' or 'all', got {loss_on!r}: choose one."
        )


def parse_row(row: Mapping[str, Any]) -> Conversation:
    """The conversation that a row holds.

    Raises:
        RowFault: `malformed` (a missing field or a wrong type), `bad_unicode` (a lone surrogate,
            which has no UTF-8 form) or `empty` (no text at all).

    Example:
        >>> parse_row({"text": "hello"}).messages[0].role
        'text'
    """
    if not isinstance(row, Mapping):
        raise RowFault("malformed", f"expected {EXPECTED}, got {_show(row)}.")
    given = {key: row[key] for key in ROW_COLUMNS if row.get(key) is not None}
    if "messages" in given:
        conversation = Conversation(
            _messages(given["messages"], "messages"), False, **_template_inputs(given)
        )
    elif "prompt" in given and "completion" in given:
        conversation = _prompt_completion(given)
    elif "text" in given:
        conversation = Conversation((Message("text", _text(given["text"], "text")),), True)
    else:
        raise RowFault(
            "malformed", f"expected {EXPECTED}, got the keys {sorted(map(str, row))[:12]}."
        )
    if not any(m.content or m.extra for m in conversation.messages):
        raise RowFault("empty", f"expected some text, got none in {_show(dict(row))}.")
    return conversation


def _prompt_completion(given: Mapping[str, Any]) -> Conversation:
    prompt, completion = given["prompt"], given["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        pieces = (
            Message("prompt", _text(prompt, "prompt")),
            Message("completion", _text(completion, "completion")),
        )
        return Conversation(pieces, True, 1)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise RowFault(
            "malformed",
            "expected prompt and completion to be both strings or both lists of messages, got "
            f"{type(prompt).__name__} and {type(completion).__name__}.",
        )
    before = _messages(prompt, "prompt")
    after = _messages(completion, "completion")
    return Conversation(before + after, False, len(before), **_template_inputs(given))


def _template_inputs(given: Mapping[str, Any]) -> dict[str, Any]:
    tools = given.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) or None
        except ValueError as error:
            raise RowFault("malformed", f"expected tools to be JSON, got {error}.") from error
    if tools is not None and (isinstance(tools, Mapping) or not isinstance(tools, Sequence)):
        raise RowFault("malformed", f"expected tools to be a list, got {_show(tools)}.")
    kwargs = given.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise RowFault(
            "malformed", f"expected chat_template_kwargs to be a mapping, got {_show(kwargs)}."
        )
    return {
        "tools": tuple(tools) if tools else None,
        "template_kwargs": {k: v for k, v in kwargs.items() if v is not None},
    }


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence) or not value:
        raise RowFault(
            "malformed", f"{where}: expected a list of one message or more, got {_show(value)}."
        )
    return tuple(_message(item, f"{where}[{i}]") for i, item in enumerate(value))


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
        raise RowFault(
            "malformed",
            f'{where}: expected {{"role": string, "content": string}}, got {_show(item)}.',
        )
    role = _text(item["role"], f"{where}.role")
    extra = {
        key: _without_none(value)
        for key, value in item.items()
        if key not in ("role", "content") and value is not None
    }
    content = item.get("content")
    if content is None and extra:
        return Message(role, None, extra)
    return Message(role, _content(content, f"{where}.content"), extra)


def _content(value: Any, where: str) -> str:
    """A string, or the texts of a list of `{"type": "text", "text": ...}` one after the other."""
    if isinstance(value, str):
        return _text(value, where)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RowFault(
            "malformed",
            f'{where}: expected a string or a list of {{"type": "text", "text": string}}, '
            f"got {_show(value)}.",
        )
    texts = []
    for i, item in enumerate(value):
        if not isinstance(item, Mapping) or item.get("type") != "text":
            raise RowFault(
                "malformed",
                f'{where}[{i}]: expected {{"type": "text", "text": string}} (other kinds of '
                f"content are not supported), got {_show(item)}.",
            )
        texts.append(_text(item.get("text"), f"{where}[{i}].text"))
    return "".join(texts)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RowFault("malformed", f"{where}: expected a string, got {_show(value)}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowFault(
                "bad_unicode",
                f"{where}: expected valid Unicode, got the lone surrogate "
                f"{value[error.start]!a} at character {error.start}.",
            ) from error
    return value


def _without_none(value: Any) -> Any:
    """The value without the `None` that a table puts where a row lacks a key."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(v) for v in value]
    return value


def _show(value: Any, limit: int = 80) -> str:
    shown = ascii(value)
    return f"{type(value).__name__} {shown[:limit]}{'...' if len(shown) > limit else ''}"
