r"""Rows from JSON and JSON lines, strictly: every accepted line means one thing only.

Python's `json` takes duplicate keys (the last one wins), `NaN`, and lone surrogates; none of them
means the same to everyone, so none is accepted. Lines end at the byte `\n` alone: U+2028 and its
like are text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crosstill.errors import DataError
from crosstill.text.rows import Conversation, RowFault, parse_row

SHOWN_BYTES = 80
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """Where a row comes from: a file, and a line with its first byte, or a row number."""

    file: str
    row: int  # from 1 on; the line, where lines are rows
    offset: int | None = None
    start: bytes = b""  # the row's first bytes, for the message

    def error(self, fault: RowFault, column: int = 0) -> DataError:
        """What is wrong with this row, as a message a person can act on."""
        at = f"line {self.row}, byte {self.offset + column}" if self.offset is not None else ""
        begins = f" The line begins {self.start!r}." if self.start else ""
        return DataError(
            f"{self.file}, {at or f'row {self.row}'}: {fault}{begins} Mend the row, or skip such "
            "rows with on_bad_row='skip'."
        )


class JsonError(RowFault):
    """A text that is no JSON we accept; `column` is the byte in it, where that is known."""

    def __init__(self, reason: str, message: str, column: int = 0):
        super().__init__(reason, message)
        self.column = column

    def __reduce__(self):
        return JsonError, (self.reason, str(self), self.column)


def strict_json(raw: bytes) -> Any:
    """The value that UTF-8 JSON spells.

    Raises:
        JsonError: `bad_unicode` (invalid UTF-8), `bad_json`, `duplicate_key` or `not_a_number`.

    Example:
        >>> strict_json(b'{"text": "hi"}')
        {'text': 'hi'}
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise JsonError(
            "bad_unicode",
            f"expected UTF-8, got the byte 0x{raw[error.start]:02x} ({error.reason}).",
            error.start,
        ) from error
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        column = len(text[: error.pos].encode())
        raise JsonError("bad_json", f"expected JSON, got {error.msg}.", column) from error
    except JsonError:
        raise
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise JsonError("bad_json", f"expected ordinary JSON, got {error}.") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonError("duplicate_key", f"expected every key once, got {twice!a} twice.")
    return made


def _no_constant(name: str) -> Any:
    raise JsonError("not_a_number", f"expected JSON, which has no {name}.")


def json_lines(path: Path) -> Iterator[tuple[Place, bytes]]:
    """Each line that is not blank, without reading the file at once."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            raw = line.removesuffix(b"\n")
            skipped = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
            if raw[skipped:].strip():
                start = raw[skipped : skipped + SHOWN_BYTES]
                yield Place(str(path), number, offset + skipped, start), raw[skipped:]
            offset += len(line)


def row_of(value: Any) -> tuple[dict[str, Any], list[str]]:
    """A row in the columns of the data set, and the keys that were not used.

    Raises:
        RowFault: The value is no usable row.
    """
    conversation = parse_row(value)
    row = as_columns(conversation, value)
    return row, [str(key) for key in value if key not in row]


def as_columns(conversation: Conversation, row: Mapping[str, Any]) -> dict[str, Any]:
    """The used columns of a row, in types that are the same for every row.

    Contents are strings; `tools` is JSON, since a table would give every tool the fields of all.
    """
    messages = [message.as_dict() for message in conversation.messages]
    if conversation.plain:
        contents = [message["content"] for message in messages]
        names = ("text",) if len(contents) == 1 else ("prompt", "completion")
        return dict(zip(names, contents, strict=True))
    if conversation.completion_from is None:
        out: dict[str, Any] = {"messages": messages}
    else:
        cut = conversation.completion_from
        out = {"prompt": messages[:cut], "completion": messages[cut:]}
    if conversation.tools:
        out["tools"] = json.dumps(list(conversation.tools), ensure_ascii=False)
    if conversation.template_kwargs:
        out["chat_template_kwargs"] = dict(conversation.template_kwargs)
    return out
