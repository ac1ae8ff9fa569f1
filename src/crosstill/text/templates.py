"""Chat templates: rendering them within bounds, and finding each message's text in the result.

A template is a program from a model's folder. It runs in the sandbox of `transformers`, with a time
limit and a size limit on top. Where a message's text landed is found by rendering a second time
with markers in place of the texts: if the real rendering is the marked one with the texts put
back, their places are known and nothing was guessed.
"""

import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from crosstill.errors import ConfigError
from crosstill.text.rows import Conversation, RowFault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 2.0
_ROOM = 1_000_000  # characters a template may add to the texts, beyond 16 times their length
_RESERVED = frozenset(
    {"tokenize", "return_dict", "return_tensors", "conversation", "return_assistant_tokens_mask"}
)
THINKING = ("<think>", "</think>")
"""What families write round an answer's reasoning; it belongs to the turn, not to its header."""

_THINK = re.compile("(" + "|".join(THINKING) + ")")


@dataclass(frozen=True)
class Located:
    """Where (a part of) a message's content stands in the rendered text; all in characters."""

    message: int
    offset: int  # in the content of the row
    start: int  # in the rendered text
    end: int


def render_chat(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the tokenizer's own chat template writes it.

    Raises:
        ConfigError: The tokenizer has no chat template, or an argument is reserved.
        RowFault: `template`, when the template refuses the conversation or exceeds its limits.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{tokenizer.name_or_path or type(tokenizer).__name__}: expected a chat template for "
            "rows of messages, got a tokenizer without one: use the instruction-tuned model's "
            'tokenizer, set tokenizer.chat_template, or give rows as "text" or as strings '
            '"prompt" and "completion".'
        )
    kwargs = {**(chat_template_kwargs or {}), **conversation.template_kwargs}
    reserved = sorted(_RESERVED & kwargs.keys())
    if reserved:
        raise ConfigError(
            f"chat_template_kwargs: expected arguments of the template, got {reserved}, which "
            "crosstill sets by itself: remove them."
        )
    messages = [message.as_dict() for message in conversation.messages]
    tools = list(conversation.tools) if conversation.tools else None
    try:
        with _time_limit(SECONDS):
            text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **kwargs)
    except (MemoryError, RecursionError, ImportError):
        raise
    except Exception as error:  # a template may raise anything, jinja's own errors included
        raise RowFault(
            "template",
            "expected the chat template to accept the conversation, got "
            f"{type(error).__name__}: {str(error)[:200]}.",
        ) from error
    if not isinstance(text, str):
        raise RowFault("template", f"expected a text, got {type(text).__name__}.")
    if len(text) > _ROOM + 16 * sum(len(m.content or "") for m in conversation.messages):
        raise RowFault("template", f"expected a bounded rendering, got {len(text)} characters.")
    return text


def locate(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, tuple[Located, ...]]:
    """The rendered conversation and the place of each content in it, in reading order.

    A template may strip a content, leave it out, or (Qwen3) take a `<think>` block out of it:
    what is located is what stands there, and `Located.offset` says where that begins in the row.

    Raises:
        RowFault: `template`, when a content cannot be located for sure.
    """
    text = render_chat(tokenizer, conversation, chat_template_kwargs)
    whole = [
        (i, 0, m.content) for i, m in enumerate(conversation.messages) if m.content is not None
    ]
    found = _by_markers(tokenizer, conversation, chat_template_kwargs, text, whole)
    if found is None:
        answers = {i for i, m in enumerate(conversation.messages) if m.role == "assistant"}
        apart = [_around_thinking(*piece) if piece[0] in answers else [piece] for piece in whole]
        split = [piece for pieces in apart for piece in pieces]
        found = _by_markers(tokenizer, conversation, chat_template_kwargs, text, split)
    if found is None:
        found = _by_search(text, whole)
    return text, tuple(found)


_Piece = tuple[int, int, str]  # message, offset in its content, text


def _by_markers(
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    kwargs: Mapping[str, Any] | None,
    text: str,
    pieces: Sequence[_Piece],
) -> list[Located] | None:
    """Places found by rendering with a marker for each piece; None if the two do not agree."""
    marker = "crosstill9mark"
    while marker in text:
        marker += "9"
    marks = [f"{marker}x{i}x" for i in range(len(pieces))]
    contents = {i: "" for i, m in enumerate(conversation.messages) if m.content is not None}
    for index, content in enumerate(m.content for m in conversation.messages):
        if content is not None:
            contents[index] = _marked(
                content, [(p, k) for p, k in zip(pieces, marks, strict=True) if p[0] == index]
            )
    messages = tuple(
        replace(m, content=contents.get(i)) for i, m in enumerate(conversation.messages)
    )
    try:
        marked = render_chat(tokenizer, replace(conversation, messages=messages), kwargs)
    except RowFault:
        return None
    cuts = list(re.finditer(re.escape(marker) + r"x(\d+)x", marked))
    order = [int(cut.group(1)) for cut in cuts]
    if len(set(order)) != len(order):
        return None
    edges = [0, *(edge for cut in cuts for edge in cut.span()), len(marked)]
    scaffold = [marked[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return _fill(text, scaffold, [pieces[i] for i in order])


def _marked(content: str, pieces: Sequence[tuple[_Piece, str]]) -> str:
    """The content with each of its pieces replaced by its marker."""
    out, at = [], 0
    for (_, offset, text), mark in pieces:
        out += [content[at:offset], mark]
        at = offset + len(text)
    return "".join([*out, content[at:]])


def _fill(text: str, scaffold: Sequence[str], pieces: Sequence[_Piece]) -> list[Located] | None:
    """Places of the pieces if `text` is the scaffold with them (or them stripped) between."""
    if not text.startswith(scaffold[0]):
        return None
    at, found = len(scaffold[0]), []
    for piece, after in zip(pieces, scaffold[1:], strict=True):
        message, offset, content = piece
        for skipped, variant in _variants(content):
            if text.startswith(variant + after, at):
                found.append(Located(message, offset + skipped, at, at + len(variant)))
                at += len(variant) + len(after)
                break
        else:
            return None
    return found if at == len(text) else None


def _variants(content: str) -> Iterator[tuple[int, str]]:
    """The content as it is, and the ways templates strip it, with the characters cut in front."""
    yield 0, content
    for chars in (None, "\n"):
        left = len(content) - len(content.lstrip(chars))
        yield left, content.strip(chars)
        yield left, content.lstrip(chars)
        yield 0, content.rstrip(chars)


def _around_thinking(message: int, offset: int, content: str) -> list[_Piece]:
    """The pieces of a content outside and inside its `<think>` tags, stripped, none empty."""
    if not _THINK.search(content):
        return [(message, offset, content)]
    pieces, at = [], offset
    for text in _THINK.split(content):
        stripped = text.strip()
        if stripped and not _THINK.fullmatch(text):
            pieces.append((message, at + len(text) - len(text.lstrip()), stripped))
        at += len(text)
    return pieces


def _by_search(text: str, pieces: Sequence[_Piece]) -> list[Located]:
    """Places of contents that occur once each, in order."""
    found = []
    for message, offset, content in pieces:
        core = content.strip()
        if not core:
            continue
        if text.count(core) != 1:
            raise RowFault(
                "template",
                f"expected message {message} once in what the chat template writes, got it "
                f"{text.count(core)} times: the template rewrites contents.",
            )
        start = text.index(core)
        skipped = len(content) - len(content.lstrip())
        found.append(Located(message, offset + skipped, start, start + len(core)))
    if any(a.end > b.start for a, b in pairwise(found)):
        raise RowFault("template", "expected messages in order, got the template's own order.")
    return found


class _TooSlowError(Exception):
    """A template ran past its time limit."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`.

    Python can interrupt its own thread only by a signal: elsewhere than in the main thread, or
    where someone else's alarm is running, there is no limit.
    """
    usable = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    if not usable or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise _TooSlowError(f"the template ran longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
