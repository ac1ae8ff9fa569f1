"""Alignment of one row as the two models read it: templates, special tokens, supervision.

Only what both sides have is aligned, stretch by stretch: the characters of a message that both
templates wrote, by their bytes; a special token with the same role in the same message, as a whole.
Everything else (template words, tokens across a seam, special tokens of one side) is in no chunk.
"""

from dataclasses import dataclass

import numpy as np

from crosstill.align.coordinates import rewritten_line
from crosstill.align.kernel import row_chunks
from crosstill.align.pairing import PartPair, pair_parts
from crosstill.text.normalize import Normalization
from crosstill.text.render import Part, Rendered
from crosstill.text.rows import RowFault

_Place = tuple[int, int, int, int]
"""The student's or the teacher's half of a stretch of `kernel.row_chunks`."""


@dataclass(eq=False)  # not frozen, for speed
class RowAlignment:
    """The chunks of one rendered row.

    Attributes:
        student_chunk: int32 [Ts], chunk of each student token, -1 in none.
        teacher_chunk: int32 [Tt].
        supervised: bool [C], whether the chunk may be taught: both sides' parts are supervised,
            and it does not hold the first token of a side (which has no likelihood).
        anchor: bool [C], whether the chunk is a pair of special tokens.
        rewritten: Whether a normaliser changed a content that both sides have.
        aligned_bytes: Bytes of content that the student spells in supervised chunks.
        total_bytes: Bytes of content that the student spells in its supervised parts.
    """

    student_chunk: np.ndarray
    teacher_chunk: np.ndarray
    supervised: np.ndarray
    anchor: np.ndarray
    rewritten: bool
    aligned_bytes: int
    total_bytes: int


def align_rendered(student: Rendered, teacher: Rendered) -> RowAlignment:
    """Aligns one row that both sides have rendered.

    Args:
        student: The row as the student reads it.
        teacher: The row as the teacher reads it.

    Raises:
        RowFault: The row is to be skipped and counted: `unknown_token` when a side holds tokens
            that hide bytes, `unaligned` when a content's tokens do not spell what its tokenizer
            makes of it.
    """
    sides = student, teacher
    for side in sides:
        _check_known(side)
    edges = [student.byte_ends], [teacher.byte_ends]
    stretches, rewritten = [], False
    for pair in pair_parts(student.parts, teacher.parts):
        own, other = pair.student, pair.teacher
        taught = own.supervised and other.supervised
        if own.kind == "special":
            stretches += own.start, own.end, 0, 0, other.start, other.end, 0, 0, True, taught
        elif places := _places(pair, sides):
            if (own.rewritten or other.rewritten) and _changed(pair, sides):
                rewritten = True
                places = _on_common_line(pair, sides, places, edges)
            stretches += *places[0], *places[1], False, taught
    student_chunk, teacher_chunk, supervised, anchor, aligned_bytes = row_chunks(
        _joined(edges[0]),
        len(student.ids),
        _joined(edges[1]),
        len(teacher.ids),
        np.array(stretches, np.int64).reshape(-1, 10),
    )
    contents = [part for part in student.parts if part.kind == "content" and part.supervised]
    return RowAlignment(
        student_chunk,
        teacher_chunk,
        supervised,
        anchor,
        rewritten,
        aligned_bytes,
        total_bytes=sum([part.end - part.start for part in contents]),
    )


def _check_known(side: Rendered) -> None:
    unknown = side.encoder.bytes.unknown_id
    if unknown is not None and unknown in side.ids:
        raise RowFault(
            "unknown_token",
            f"expected tokens that spell the row, got the unknown token {unknown} at position "
            f"{side.ids.index(unknown)}: its tokenizer cannot write some character of this row.",
        )


def _places(pair: PartPair, sides: tuple[Rendered, Rendered]) -> tuple[_Place, _Place] | None:
    """Where a content stands on both sides; `None` where a side has no token of it."""
    size = _utf8_size(pair.text)
    student = _place(sides[0], pair.student, pair.student_at, len(pair.text), size)
    teacher = _place(sides[1], pair.teacher, pair.teacher_at, len(pair.text), size)
    return (student, teacher) if student[0] < student[1] and teacher[0] < teacher[1] else None


def _place(side: Rendered, part: Part, at: int, length: int, size: int) -> _Place:
    """Where `length` characters of a part from `at` on, which are `size` bytes, stand."""
    if part.rewritten:
        start, end = _rewritten_range(part, at, length, side.encoder.normalization)
    else:
        start = part.start + _utf8_size(part.text[:at])
        end = start + size
        _check_end(part, end + _utf8_size(part.text[at + length :]))
    first, stop = _tokens(side, start, end)
    return first, stop, first, start


def _rewritten_range(
    part: Part, at: int, length: int, normalization: Normalization
) -> tuple[int, int]:
    """Where characters are spelled; nowhere if they are rewritten together with those beside."""
    whole = normalization.spelled(part.text)
    _check_end(part, part.start + len(whole))
    pieces = part.text[:at], part.text[at : at + length], part.text[at + length :]
    head, body, tail = (normalization.spelled(piece) for piece in pieces)
    start = part.start + len(head)
    return start, start + len(body) if head + body + tail == whole else start


def _check_end(part: Part, expected: int) -> None:
    if part.end != expected:
        raise RowFault(
            "unaligned",
            f"expected the {part.role}'s content of message {part.message} to take "
            f"{expected - part.start} bytes, got {part.end - part.start}: the tokenizer rewrites "
            "it together with the text around it.",
        )


def _tokens(side: Rendered, start: int, end: int) -> tuple[int, int]:
    """The tokens wholly within the bytes `[start, end)`, no special token at either end."""
    ends, ids, special = side.byte_ends, side.ids, side.encoder.bytes.special
    first = int(ends.searchsorted(start)) + 1 if start > 0 else 0
    stop = int(ends.searchsorted(end, "right"))
    at = first
    while at < stop and ends[at] <= start:
        at += 1
        if special[ids[at - 1]]:
            first = at
    at = stop - 1
    while at > first and ends[at - 1] >= end:
        if special[ids[at]]:
            stop = at
        at -= 1
    return first, stop


def _changed(pair: PartPair, sides: tuple[Rendered, Rendered]) -> bool:
    """Whether a normaliser changed the common characters on either side."""
    return any(side.encoder.normalization.changes(pair.text) for side in sides)


def _on_common_line(
    pair: PartPair,
    sides: tuple[Rendered, Rendered],
    places: tuple[_Place, _Place],
    edges: tuple[list[np.ndarray], list[np.ndarray]],
) -> tuple[_Place, _Place]:
    """The places of a rewritten content on a line that both sides share, put behind the edges."""
    own = [
        np.append(0, side.byte_ends)[first : stop + 1] - start
        for side, (first, stop, _, start) in zip(sides, places, strict=True)
    ]
    student, teacher = (side.encoder.normalization for side in sides)
    common = rewritten_line(pair.text, student, own[0], teacher, own[1])
    moved = []
    for (first, stop, _, _), side_edges, line in zip(places, edges, common, strict=True):
        moved.append((first, stop, 1 + sum(map(len, side_edges)), 0))
        side_edges.append(line)
    return moved[0], moved[1]


def _joined(edges: list[np.ndarray]) -> np.ndarray:
    return edges[0] if len(edges) == 1 else np.concatenate(edges)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
