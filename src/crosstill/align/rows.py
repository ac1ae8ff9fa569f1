"""Alignment of one row as the two models read it: templates, special tokens, supervision.

Only what both sides have lies on the common line. A stretch of a message that both templates wrote
takes its bytes there, a special token with the same role in the same message takes one unit, and
everything else (template words, tokens across a seam, special tokens of one side) is outside.
"""

from dataclasses import dataclass

import numpy as np

from crosstill.align.coordinates import SCALE, rewritten_line
from crosstill.align.kernel import chunk_ids
from crosstill.align.pairing import PartPair, pair_parts
from crosstill.text.normalize import Normalization
from crosstill.text.render import Part, Rendered
from crosstill.text.rows import RowFault


@dataclass(frozen=True, eq=False)
class RowAlignment:
    """The chunks of one rendered row.

    Attributes:
        student_chunk: int32 [Ts], chunk of each student token, -1 in none.
        teacher_chunk: int32 [Tt].
        supervised: bool [C], whether the chunk may be taught: both sides' parts are supervised,
            and it does not hold the first token of a side (which has no likelihood).
        anchor: bool [C], whether the chunk is a pair of special tokens.
        rewritten: Whether a normaliser changed a content that is on the line.
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


class _Line:
    """The token coordinates of one side, filled part by part."""

    def __init__(self, rendered: Rendered):
        self.ids = rendered.ids
        self.special = rendered.encoder.bytes.special
        self.edges = np.zeros(len(self.ids) + 1, np.int64)
        self.edges[1:] = rendered.byte_ends
        self.start, self.end, self.pair = np.full((3, len(self.ids)), -1, np.int64)

    def tokens(self, start: int, end: int) -> tuple[int, int]:
        """The tokens wholly within the bytes `[start, end)`, no special token among them."""
        first = int(self.edges[:-1].searchsorted(start, side="left"))
        last = int(self.edges[1:].searchsorted(end, side="right"))
        for at in range(first, last):
            if self.edges[at + 1] > start:
                break
            if self.special[self.ids[at]]:
                first = at + 1
        for at in reversed(range(first, last)):
            if self.edges[at] < end:
                break
            if self.special[self.ids[at]]:
                last = at
        return first, max(first, last)

    def put(self, first: int, edges: np.ndarray, pair: int) -> None:
        """Places the tokens from `first` on between the edges."""
        stop = first + len(edges) - 1
        self.start[first:stop] = edges[:-1]
        self.end[first:stop] = edges[1:]
        self.pair[first:stop] = pair


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
    for side in (student, teacher):
        _check_known(side)
    pairs = pair_parts(student.parts, teacher.parts)
    lines = _Line(student), _Line(teacher)
    base, rewritten = 0, False
    for k, pair in enumerate(pairs):
        if pair.student.kind == "special":
            length = _put_special(lines, pair, base, k)
        else:
            length, changed = _put_content(lines, pair, (student, teacher), base, k)
            rewritten |= changed
        base += length + SCALE  # a gap, so that no chunk reaches over two parts
    student_chunk, teacher_chunk, n = chunk_ids(
        lines[0].start, lines[0].end, lines[1].start, lines[1].end
    )
    held = student_chunk >= 0
    pair_of = np.empty(n, np.int64)
    pair_of[student_chunk[held]] = lines[0].pair[held]
    taught = np.array([p.student.supervised and p.teacher.supervised for p in pairs], bool)
    special = np.array([p.student.kind == "special" for p in pairs], bool)
    supervised, anchor = taught[pair_of], special[pair_of]
    for chunk in (student_chunk, teacher_chunk):
        if len(chunk) and chunk[0] >= 0:
            supervised[chunk[0]] = False
    counted = held.copy()
    counted[held] = supervised[student_chunk[held]]
    return RowAlignment(
        student_chunk,
        teacher_chunk,
        supervised,
        anchor,
        rewritten,
        aligned_bytes=int(np.diff(lines[0].edges)[counted].sum()),
        total_bytes=sum(
            p.end - p.start for p in student.parts if p.kind == "content" and p.supervised
        ),
    )


def _check_known(side: Rendered) -> None:
    unknown = side.encoder.bytes.unknown_id
    if unknown is not None and unknown in side.ids:
        raise RowFault(
            "unknown_token",
            f"expected tokens that spell the row, got the unknown token {unknown} at position "
            f"{side.ids.index(unknown)}: its tokenizer cannot write some character of this row.",
        )


def _put_special(lines: tuple[_Line, _Line], pair: PartPair, base: int, k: int) -> int:
    """Gives a special of both sides one unit; edges inside a longer one match nothing."""
    for beside, (line, part) in enumerate(zip(lines, (pair.student, pair.teacher), strict=True)):
        inner = [base + 1 + beside] * (part.end - part.start - 1)
        line.put(part.start, np.array([base, *inner, base + SCALE]), k)
    return SCALE


def _put_content(
    lines: tuple[_Line, _Line], pair: PartPair, sides: tuple[Rendered, Rendered], base: int, k: int
) -> tuple[int, bool]:
    """Places a content of both sides; returns its length on the line and if it was rewritten."""
    student, teacher = (side.encoder.normalization for side in sides)
    spans = (
        _byte_range(pair.student, pair.student_at, pair.length, student),
        _byte_range(pair.teacher, pair.teacher_at, pair.length, teacher),
    )
    tokens, edges = [], []
    for line, (start, end) in zip(lines, spans, strict=True):
        first, stop = line.tokens(start, end)
        if first == stop:
            return 0, False
        tokens.append(first)
        edges.append(line.edges[first : stop + 1] - start)
    rewritten = student.changes(pair.text) or teacher.changes(pair.text)
    if rewritten:
        edges = rewritten_line(pair.text, student, edges[0], teacher, edges[1])
    else:
        edges = [SCALE * own for own in edges]
    for line, first, own in zip(lines, tokens, edges, strict=True):
        line.put(first, base + own, k)
    return int(max(own[-1] for own in edges)), rewritten


def _byte_range(part: Part, at: int, length: int, normalization: Normalization) -> tuple[int, int]:
    """Where `length` characters of a part from `at` on stand in the side's spelled bytes.

    An empty range where the characters were rewritten together with others beside them.
    """
    whole = normalization.spelled(part.text)
    if len(whole) != part.end - part.start:
        raise RowFault(
            "unaligned",
            f"expected the {part.role}'s content of message {part.message} to take {len(whole)} "
            f"bytes, got {part.end - part.start}: the tokenizer rewrites it together with the "
            "text around it.",
        )
    if length == len(part.text):
        return part.start, part.end
    texts = part.text[:at], part.text[at : at + length], part.text[at + length :]
    head, body, tail = (normalization.spelled(text) for text in texts)
    if head + body + tail != whole:
        return part.start, part.start
    return part.start + len(head), part.start + len(head) + len(body)
