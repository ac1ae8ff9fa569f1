"""From a row to the ids one model reads, and where in them the row's own text stands.

Each model reads its own chat template, tokenised whole as the model would see it: pieces of
ordinary text may merge across the seam between template and content. Special tokens come from the
template alone; their names inside a content are spelled out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from crosstill.errors import DataError
from crosstill.text.encode import TextEncoder
from crosstill.text.rows import Conversation, LossOn, RowFault, check_loss_on, parse_row
from crosstill.text.templates import Located, locate


@dataclass(frozen=True)
class Part:
    """A place both models may have: a stretch of content, or one special token with a role.

    Attributes:
        kind: `content` or `special`.
        role: Who speaks (`user`, `assistant`, `text`, `prompt`, ...), or the token's role.
        message: Index of the message; -1 before the first.
        text: What stands there (empty for a special token).
        start: Content: first byte in this side's spelled stream. Special: token index.
        end: One past the last byte or token.
        supervised: Whether it is taught.
        offset: Characters of the message's content before `text` (a template may strip it).
        rewritten: Whether the tokens spell something else than `text`, by a normaliser.
    """

    kind: Literal["content", "special"]
    role: str
    message: int
    text: str
    start: int
    end: int
    supervised: bool
    offset: int = 0
    rewritten: bool = False


@dataclass(frozen=True, eq=False)
class Rendered:
    """One row as one model reads it.

    Attributes:
        ids: Token ids [T].
        byte_ends: int64 [T], bytes spelled up to the end of each token. Special tokens spell
            nothing, and a prefix space that the tokenizer added by itself is not counted.
        parts: In reading order.
        encoder: The side's encoder.
    """

    ids: list[int]
    byte_ends: np.ndarray
    parts: tuple[Part, ...]
    encoder: TextEncoder


@dataclass(frozen=True)
class _Run:
    """Ids of one stretch of the rendered text: ordinary text, or one special token."""

    ids: Sequence[int]
    start: int  # characters
    end: int
    special: bool


@dataclass(frozen=True)
class _Spelled:
    """What one run spells: from which byte on, which bytes, and whether they are not its text's."""

    start: int
    bytes: bytes
    rewritten: bool


def render(
    row: Mapping[str, Any],
    encoder: TextEncoder,
    *,
    loss_on: LossOn = "completion",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Rendered:
    """The row as one model reads it, with its contents and special tokens located.

    `text` and string `prompt`/`completion` rows are plain text: a bos if the tokenizer puts one,
    the text, and always the end of text if the tokenizer has one, so that ending is taught. Rows
    of messages go through the chat template and get nothing beyond it.

    Args:
        row: See `crosstill.text.rows`.
        encoder: The side's encoder.
        loss_on: `completion`, `assistant` or `all`; what a turn's end belongs to follows its turn.
        chat_template_kwargs: Arguments of the template; the row's own go first.

    Raises:
        ConfigError: A chat row, and no chat template.
        RowFault: The row cannot be used (its `reason` says which way).
    """
    check_loss_on(loss_on)
    conversation = parse_row(row)
    taught = conversation.supervised(loss_on)
    if conversation.plain:
        text, places = _plain(conversation)
        runs = _plain_runs(text, encoder)
    else:
        text, places = locate(encoder.tokenizer, conversation, chat_template_kwargs)
        runs, places = _chat_runs(text, places, encoder)
    spelled, byte_ends = _spell(text, runs, encoder)
    parts = _contents(text, places, runs, spelled, conversation, taught, encoder)
    if conversation.plain:
        parts += _ends_of_text(runs, len(places) - 1, taught)
    else:
        parts += _turn_tokens(runs, places, encoder, taught, loss_on)
    ids = [id for run in runs for id in run.ids]
    ordered = tuple(part for _, part in sorted(parts, key=lambda entry: entry[0]))
    return Rendered(ids, byte_ends, ordered, encoder)


def _plain(conversation: Conversation) -> tuple[str, tuple[Located, ...]]:
    text, places = "", []
    for index, message in enumerate(conversation.messages):
        content = message.content or ""
        places.append(Located(index, 0, len(text), len(text) + len(content)))
        text += content
    return text, tuple(places)


def _plain_runs(text: str, encoder: TextEncoder) -> list[_Run]:
    roles = encoder.roles
    runs = [_Run(_encode(text, encoder), 0, len(text), False)]
    if encoder.adds_bos and roles.bos is not None:
        runs.insert(0, _Run((roles.bos,), -1, 0, True))
    if roles.eos is not None:
        runs.append(_Run((roles.eos,), len(text), len(text), True))
    return runs


def _encode(text: str, encoder: TextEncoder) -> list[int]:
    try:
        return encoder.encode(text)
    except DataError as error:
        raise RowFault("unspellable", str(error)) from error


def _chat_runs(
    text: str, places: Sequence[Located], encoder: TextEncoder
) -> tuple[list[_Run], tuple[Located, ...]]:
    """The rendered text cut at the template's special tokens, tokenised as the model sees it.

    One pass over the whole text, unless a content holds the name of a special token: then each
    stretch between the template's own is tokenised by itself, with such names spelled out.
    """
    encoded = encoder.tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
        split_special_tokens=False,
        verbose=False,
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = np.flatnonzero(encoder.bytes.special[ids]) if ids else np.empty(0, np.int64)
    own = [int(t) for t in special if not _in_content(text, ids[t], offsets[t], places, encoder)]
    spelled_out = len(own) < len(special)
    runs, at, token = [], 0, 0
    for t in [*own, None]:
        start, end = (len(text), len(text)) if t is None else offsets[t]
        stretch = _encode(text[at:start], encoder) if spelled_out else ids[token:t]
        if start > at:
            runs.append(_Run(stretch, at, start, False))
        if t is not None:
            runs.append(_Run((ids[t],), start, end, True))
            at, token = end, t + 1
    return runs, tuple(_trimmed(place, runs) for place in places)


def _in_content(
    text: str,
    id: int,
    offsets: tuple[int, int],
    places: Sequence[Located],
    encoder: TextEncoder,
) -> bool:
    """Whether a special token was read out of a content rather than out of the template."""
    literal = str(encoder.tokenizer.convert_ids_to_tokens(id))
    core = text.find(literal, *offsets)  # a token may swallow the spaces beside it
    start, end = offsets if core < 0 else (core, core + len(literal))
    return any(start < place.end and end > place.start for place in places)


def _trimmed(place: Located, runs: Sequence[_Run]) -> Located:
    """The place without what a special token beside it swallowed."""
    for run in runs:
        start, end = max(place.start, run.start), min(place.end, run.end)
        if not run.special and start <= end and (start < end or place.start == place.end):
            return Located(place.message, place.offset + start - place.start, start, end)
    return Located(place.message, place.offset, place.start, place.start)


def _spell(
    text: str, runs: Sequence[_Run], encoder: TextEncoder
) -> tuple[list[_Spelled], np.ndarray]:
    """What each run spells, and the byte ends of all tokens.

    Raises:
        RowFault: `unknown_token` or `unspellable`.
    """
    unknown, normalization = encoder.bytes.unknown_id, encoder.normalization
    spelled, base = [], 0
    for run in runs:
        if not run.special and unknown is not None and unknown in run.ids:
            raise RowFault(
                "unknown_token",
                "expected a text that the tokenizer can spell, got an unknown token.",
            )
        stretch = "" if run.special else text[run.start : run.end]
        changed = normalization.changes(stretch)
        own = normalization.spelled(stretch) if changed else stretch.encode()
        spelled.append(_Spelled(base, own, changed))
        base += len(own)
    ids = [id for run in runs for id in run.ids]
    if encoder.bytes.spell(ids) == b"".join(own.bytes for own in spelled):  # no prefix anywhere
        return spelled, encoder.bytes.ends(ids)
    ends = [
        own.start + _run_ends(own.bytes, run.ids, encoder)
        for run, own in zip(runs, spelled, strict=True)
    ]
    return spelled, np.concatenate(ends)


def _run_ends(own: bytes, ids: Sequence[int], encoder: TextEncoder) -> np.ndarray:
    """Byte ends of the tokens of one run; a prefix the tokenizer put before it has no bytes."""
    by_tokens, prefix = encoder.bytes.spell(ids), encoder.normalization.prefix
    if by_tokens == own:
        return encoder.bytes.ends(ids)
    if by_tokens == prefix + own:
        return np.maximum(encoder.bytes.ends(ids) - len(prefix), 0)
    raise RowFault(
        "unspellable", f"expected the tokens to spell {own[:80]!r}, got {by_tokens[:80]!r}."
    )


_Placed = tuple[tuple[int, int], Part]  # (character, 0 content or 1 special), part


def _contents(
    text: str,
    places: Sequence[Located],
    runs: Sequence[_Run],
    spelled: Sequence[_Spelled],
    conversation: Conversation,
    taught: frozenset[int],
    encoder: TextEncoder,
) -> list[_Placed]:
    parts = []
    for place in places:
        start, end, rewritten = _bytes_of(text, place, runs, spelled, encoder)
        part = Part(
            kind="content",
            role=conversation.messages[place.message].role,
            message=place.message,
            text=text[place.start : place.end],
            start=start,
            end=end,
            supervised=place.message in taught,
            offset=place.offset,
            rewritten=rewritten,
        )
        parts.append(((place.start, 0), part))
    return parts


def _bytes_of(
    text: str,
    place: Located,
    runs: Sequence[_Run],
    spelled: Sequence[_Spelled],
    encoder: TextEncoder,
) -> tuple[int, int, bool]:
    """Byte range of a content in the side's stream, and whether it is rewritten there.

    Raises:
        RowFault: `unspellable`, when the normaliser joined the content with its surroundings.
    """
    for run, own in zip(runs, spelled, strict=True):
        if run.special or not run.start <= place.start <= place.end <= run.end:
            continue
        pieces = (
            text[run.start : place.start],
            text[place.start : place.end],
            text[place.end : run.end],
        )
        before, inside = pieces[0].encode(), pieces[1].encode()
        kept = inside
        if own.rewritten:
            before, inside, after = (encoder.normalization.spelled(piece) for piece in pieces)
            if before + inside + after != own.bytes:
                raise RowFault(
                    "unspellable",
                    "expected a content to be rewritten by itself, got a normaliser that joins "
                    f"it with its surroundings: {pieces[1][:40]!r}.",
                )
        start = own.start + len(before)
        return start, start + len(inside), inside != kept
    return 0, 0, False  # an empty content between two special tokens


def _ends_of_text(runs: Sequence[_Run], last: int, taught: frozenset[int]) -> list[_Placed]:
    """The bos and the end of text round a plain text."""
    parts, token = [], 0
    for run in runs:
        if run.special:
            role, message = ("bos", -1) if token == 0 and run.start < 0 else ("eos", last)
            part = Part("special", role, message, "", token, token + 1, message in taught)
            parts.append(((run.start, 1), part))
        token += len(run.ids)
    return parts


def _turn_tokens(
    runs: Sequence[_Run],
    places: Sequence[Located],
    encoder: TextEncoder,
    taught: frozenset[int],
    loss_on: LossOn,
) -> list[_Placed]:
    """The template's special tokens that have a role, each with the message it belongs to.

    Between two contents: the first end of turn (and end of text) belongs to the message before,
    the last start and end of a header to the message after. The rest (a system turn that the
    template adds by itself, an open turn at the end) has no counterpart and stays scaffold.
    """
    gaps: list[list[tuple[int, int, int]]] = [[] for _ in range(len(places) + 1)]
    ordered = sorted(places, key=lambda place: (place.start, place.end))
    token = 0
    for run in runs:
        if run.special:
            gap = sum(place.end <= run.start for place in ordered)
            gaps[gap].append((int(run.ids[0]), token, run.start))
        token += len(run.ids)
    parts = []
    for gap, tokens in enumerate(gaps):
        before = ordered[gap - 1].message if gap else -1
        after = ordered[gap].message if gap < len(ordered) else -1
        if before == after:
            continue
        for role, index in _roles_in_gap([id for id, _, _ in tokens], encoder, before, after):
            _, token, start = tokens[index]
            ends = role in ("eot", "eos")
            message = before if ends else -1 if role == "bos" else after
            supervised = message in taught if ends else loss_on == "all" and role != "bos"
            part = Part("special", role, message, "", token, token + 1, supervised)
            parts.append(((start, 1), part))
    return parts


def _roles_in_gap(
    ids: Sequence[int], encoder: TextEncoder, before: int, after: int
) -> list[tuple[str, int]]:
    """Role and index of the tokens of one gap that have a role there."""
    roles = encoder.roles
    found = []
    if before >= 0:
        found += [("eot", i) for i, id in enumerate(ids) if id in roles.eot_ids][:1]
        ends = [i for i, id in enumerate(ids) if id in roles.eos_ids and id not in roles.eot_ids]
        found += [("eos", i) for i in ends[:1]]
    else:
        found += [("bos", i) for i, id in enumerate(ids) if id == roles.bos][:1]
    if after >= 0:
        done = max((i for _, i in found), default=-1)
        for role, of_role in (
            ("start_header", roles.start_header_ids),
            ("end_header", roles.end_header_ids),
        ):
            found += [(role, i) for i, id in enumerate(ids) if id in of_role and i > done][-1:]
    return found
