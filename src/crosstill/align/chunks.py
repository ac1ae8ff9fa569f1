"""Chunks of one text under two tokenizers: the public alignment.

Bytes decide. Both sides spell the text; a chunk is a shortest run of tokens that starts and ends,
on both sides, at the same byte. Nothing is decoded, and no position or character offset is used.
"""

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from crosstill.align.coordinates import rewritten_line
from crosstill.align.kernel import chunk_ids, tiled_chunk_ids
from crosstill.align.rows import RowAlignment, align_rendered
from crosstill.errors import AlignmentError
from crosstill.text.encode import TextEncoder, text_encoder

if TYPE_CHECKING:
    from crosstill.text.bytes import TokenBytes

__all__ = [
    "AlignedFraction",
    "Alignment",
    "RowAlignment",
    "align",
    "align_ids",
    "align_rendered",
    "chunk_ids",
]

ChunkRange = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class AlignedFraction:
    """How much of a text lies in chunks, each from 0 to 1 (1 where there is nothing to align).

    Attributes:
        bytes: Share of the bytes that the student spells.
        student_tokens: Share of the student's tokens.
        teacher_tokens: Share of the teacher's tokens.
    """

    bytes: float
    student_tokens: float
    teacher_tokens: float


@dataclass(eq=False)  # not frozen: that would be a tenth of the cost of aligning
class Alignment:
    """How two tokenizations of one text meet.

    Attributes:
        student_ids: The student's token ids, content only.
        teacher_ids: The teacher's.
        student_chunk: int32 [Ts], the chunk of each token, -1 in none.
        teacher_chunk: int32 [Tt].
        rewritten: Whether a normaliser (NFC ...) rewrote the text on a side. If so, the bytes of a
            chunk are equal under that normaliser; else they are equal.
        student_spelling: The student's token bytes.
        teacher_spelling: The teacher's.
        student_extra: Bytes the student's tokenizer put before the text by itself.
        teacher_extra: Bytes the teacher's did.
    """

    student_ids: list[int]
    teacher_ids: list[int]
    student_chunk: np.ndarray
    teacher_chunk: np.ndarray
    rewritten: bool
    student_spelling: "TokenBytes" = field(repr=False)
    teacher_spelling: "TokenBytes" = field(repr=False)
    student_extra: int = 0
    teacher_extra: int = 0

    @cached_property
    def chunks(self) -> list[ChunkRange]:
        """`((s0, s1), (t0, t1))` for every chunk: half-open token ranges, in order."""
        sides = (_ranges(self.student_chunk), _ranges(self.teacher_chunk))
        return list(zip(*sides, strict=True))

    def student_bytes(self, k: int) -> bytes:
        """What chunk k spells on the student's side, without a prefix the tokenizer added."""
        (start, end), _ = self.chunks[k]
        spelled = self.student_spelling.spell(self.student_ids[start:end])
        return spelled[self.student_extra :] if start == 0 else spelled

    def teacher_bytes(self, k: int) -> bytes:
        """What chunk k spells on the teacher's side, without a prefix the tokenizer added."""
        _, (start, end) = self.chunks[k]
        spelled = self.teacher_spelling.spell(self.teacher_ids[start:end])
        return spelled[self.teacher_extra :] if start == 0 else spelled

    @cached_property
    def coverage(self) -> AlignedFraction:
        """How much of the text lies in chunks."""
        ends = self.student_spelling.ends(self.student_ids)
        lengths = np.diff(np.maximum(ends - self.student_extra, 0), prepend=0)
        total, aligned = int(lengths.sum()), int(lengths[self.student_chunk >= 0].sum())
        return AlignedFraction(
            bytes=aligned / total if total else 1.0,
            student_tokens=_share(self.student_chunk),
            teacher_tokens=_share(self.teacher_chunk),
        )


def align(text: str, student_tokenizer: Any, teacher_tokenizer: Any) -> Alignment:
    r"""Aligns the two tokenizations of a text.

    Args:
        text: Any text; names of special tokens in it are ordinary text.
        student_tokenizer: A fast Hugging Face tokenizer (or a `TextEncoder`).
        teacher_tokenizer: The same.

    Returns:
        The alignment; its chunks tile the text.

    Raises:
        TokenizerError: A tokenizer cannot be read as bytes.
        DataError: The text holds a lone surrogate.
        AlignmentError: A tokenizer maps part of the text to its unknown token, or rewrites it in a
            way that cannot be followed.

    Example:
        >>> import crosstill
        >>> a = crosstill.align("Grüße", student_tokenizer, teacher_tokenizer)  # doctest: +SKIP
        >>> [a.student_bytes(k) for k in range(len(a.chunks))]  # doctest: +SKIP
        [b'Gr\xc3\xbc\xc3\x9fe']
    """
    student, teacher = text_encoder(student_tokenizer), text_encoder(teacher_tokenizer)
    return align_ids(text, student.encode(text), teacher.encode(text), student, teacher)


def align_ids(
    text: str,
    student_ids: list[int],
    teacher_ids: list[int],
    student: TextEncoder,
    teacher: TextEncoder,
) -> Alignment:
    """As `align`, for a text that is already encoded.

    Args:
        text: The text.
        student_ids: `student.encode(text)`.
        teacher_ids: `teacher.encode(text)`.
        student: The student's encoder.
        teacher: The teacher's encoder.

    Raises:
        AlignmentError: See `align`.
        TokenizerError: An id is outside its vocabulary.
    """
    student_prefix, teacher_prefix = _prefix(text, student), _prefix(text, teacher)
    rewritten = student.normalization.changes(text) or teacher.normalization.changes(text)
    chunks = _rewritten_chunks if rewritten else _kept_chunks
    try:
        student_chunk, teacher_chunk = chunks(
            text,
            _array(student_ids, student),
            student_prefix,
            _array(teacher_ids, teacher),
            teacher_prefix,
            student,
            teacher,
        )
    except (IndexError, OverflowError):  # a foreign id, which the side's own table names
        for side, ids in ((student, student_ids), (teacher, teacher_ids)):
            side.bytes.ends(ids)
        raise
    return Alignment(
        student_ids,
        teacher_ids,
        student_chunk,
        teacher_chunk,
        rewritten,
        student.bytes,
        teacher.bytes,
        student_prefix,
        teacher_prefix,
    )


def _array(ids: list[int], encoder: TextEncoder) -> np.ndarray:
    packed = array("I")
    packed.fromlist(ids)  # a quarter of the time of numpy's conversion, and the most of aligning
    index = np.frombuffer(packed, np.uintc)
    unknown = encoder.bytes.unknown_id
    if unknown is not None and (index == unknown).any():
        raise AlignmentError(
            f"expected tokens that spell the text, got the unknown token {unknown} at position "
            f"{int((index == unknown).argmax())}: this tokenizer cannot write some character of "
            "the text. Leave that text out, or choose a tokenizer with byte fallback."
        )
    return index


def _prefix(text: str, encoder: TextEncoder) -> int:
    normalization = encoder.normalization
    return len(normalization.prefix_of(text)) if normalization.prefix else 0


def _check_total(found: int, expected: int, name: str, text: str) -> None:
    if found != expected:
        raise AlignmentError(
            f"expected the {name}'s tokens to spell the {expected} bytes of {text[:40]!r}..., got "
            f"{found} bytes: its tokenizer rewrites text in a way that is not known. Leave that "
            "text out, or choose another tokenizer."
        )


def _kept_chunks(
    text: str,
    student_ids: np.ndarray,
    student_prefix: int,
    teacher_ids: np.ndarray,
    teacher_prefix: int,
    student: TextEncoder,
    teacher: TextEncoder,
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of a text that stayed as it is."""
    student_chunk, teacher_chunk, _, student_bytes, teacher_bytes = tiled_chunk_ids(
        student_ids,
        student.bytes.lengths,
        student_prefix,
        teacher_ids,
        teacher.bytes.lengths,
        teacher_prefix,
    )
    n_bytes = len(text) if text.isascii() else len(text.encode())
    _check_total(student_bytes, n_bytes, "student", text)
    _check_total(teacher_bytes, n_bytes, "teacher", text)
    return student_chunk, teacher_chunk


def _rewritten_chunks(
    text: str,
    student_ids: np.ndarray,
    student_prefix: int,
    teacher_ids: np.ndarray,
    teacher_prefix: int,
    student: TextEncoder,
    teacher: TextEncoder,
) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of a text that a normaliser changed."""
    edges = []
    for ids, prefix, encoder, name in (
        (student_ids, student_prefix, student, "student"),
        (teacher_ids, teacher_prefix, teacher, "teacher"),
    ):
        own = np.cumsum(np.append(-prefix, encoder.bytes.lengths[ids]), dtype=np.int64)
        _check_total(int(own[-1]), len(encoder.normalization.spelled(text)), name, text)
        edges.append(np.maximum(own, 0))
    on_student, on_teacher = rewritten_line(
        text, student.normalization, edges[0], teacher.normalization, edges[1]
    )
    return chunk_ids(on_student[:-1], on_student[1:], on_teacher[:-1], on_teacher[1:])[:2]


def _ranges(chunk: np.ndarray) -> list[tuple[int, int]]:
    """The half-open token range of every chunk."""
    inside = np.flatnonzero(chunk >= 0)
    if len(inside) == 0:
        return []
    change = np.flatnonzero(np.diff(chunk[inside])) + 1
    first = inside[np.concatenate([[0], change])]
    last = inside[np.concatenate([change - 1, [len(inside) - 1]])]
    return list(zip(first.tolist(), (last + 1).tolist(), strict=True))


def _share(chunk: np.ndarray) -> float:
    return float((chunk >= 0).mean()) if len(chunk) else 1.0
