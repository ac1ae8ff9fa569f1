"""One row for two models: rendered on both sides, aligned, cut to length, as arrays.

Labels follow the student's own rendering alone; chunks are what both renderings share. Only
supervised chunks get a number here, so that an objective sees nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosstill.align.rows import RowAlignment, align_rendered
from crosstill.text.encode import TextEncoder
from crosstill.text.render import Rendered, render
from crosstill.text.rows import LossOn, RowFault, parse_row

IGNORED = -100
MAX_CHARACTERS = 2_000_000


@dataclass(frozen=True, eq=False)
class PairedRow:
    """One row as arrays; token positions are the two models' own.

    Attributes:
        student_ids: int64 [Ts].
        student_labels: int64 [Ts], the id where it is taught by plain cross-entropy, else -100.
        student_chunk: int64 [Ts], supervised chunk of each token from 0 on, else -1.
        teacher_ids: int64 [Tt].
        teacher_labels: int64 [Tt], as the student's, of the teacher's own rendering.
        teacher_chunk: int64 [Tt].
        student_bytes: Bytes of supervised content that the student's kept tokens spell.
        aligned_bytes: Those of them in a supervised chunk.
        cut_bytes: Bytes of supervised content that truncation took away.
    """

    student_ids: np.ndarray
    student_labels: np.ndarray
    student_chunk: np.ndarray
    teacher_ids: np.ndarray
    teacher_labels: np.ndarray
    teacher_chunk: np.ndarray
    student_bytes: int
    aligned_bytes: int
    cut_bytes: int


def pair_row(
    row: Mapping[str, Any],
    student: TextEncoder,
    teacher: TextEncoder,
    *,
    max_length: int | tuple[int, int],
    loss_on: LossOn = "completion",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    teacher_chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PairedRow:
    """The row as both models read it, with the chunks they share.

    Where a side exceeds `max_length` tokens, both are cut behind the last chunk that ends within
    it on both sides: both lose the same bytes. Two numbers are the student's and the teacher's.

    Raises:
        RowFault: The row cannot be used; `reason` names the way.
        ConfigError: A chat row, and a tokenizer without a chat template.
    """
    _check_size(row)
    student_side = render(row, student, loss_on=loss_on, chat_template_kwargs=chat_template_kwargs)
    teacher_side = render(
        row, teacher, loss_on=loss_on, chat_template_kwargs=teacher_chat_template_kwargs
    )
    alignment = align_rendered(student_side, teacher_side)
    limits = (max_length, max_length) if isinstance(max_length, int) else max_length
    student_kept, teacher_kept = _lengths(alignment, limits)
    row_arrays = _arrays(student_side, teacher_side, alignment, student_kept, teacher_kept)
    if not (row_arrays.student_chunk >= 0).any():
        raise _nothing_taught(student_side, alignment, limits)
    return row_arrays


def _check_size(row: Mapping[str, Any]) -> None:
    """A row far beyond any context would take minutes to tokenise, only to be cut."""
    size = sum(len(message.content or "") for message in parse_row(row).messages)
    if size > MAX_CHARACTERS:
        raise RowFault(
            "too_long",
            f"expected at most {MAX_CHARACTERS} characters in a row, got {size}: split the row.",
        )


def _nothing_taught(
    student: Rendered, alignment: RowAlignment, limits: tuple[int, int]
) -> RowFault:
    if not any(part.supervised for part in student.parts):
        return RowFault(
            "unsupervised", "expected something to teach, got a row without it under loss_on."
        )
    if not alignment.supervised.any():
        return RowFault(
            "unaligned", "expected a chunk that both models can be asked about, got none."
        )
    return RowFault(
        "too_long",
        f"expected something to teach within max_length ({_shown(limits)}), got a row of "
        f"{len(student.ids)} student tokens that teaches only later.",
    )


def _shown(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]} student and {sizes[1]} teacher tokens"


def _lengths(alignment: RowAlignment, limits: tuple[int, int]) -> tuple[int, int]:
    """How many tokens of each side are kept: all, or up to the last shared end that fits."""
    sizes = len(alignment.student_chunk), len(alignment.teacher_chunk)
    if sizes[0] <= limits[0] and sizes[1] <= limits[1]:
        return sizes
    n = len(alignment.supervised)
    ends = [_chunk_ends(side, n) for side in (alignment.student_chunk, alignment.teacher_chunk)]
    fitting = int(np.sum((ends[0] <= limits[0]) & (ends[1] <= limits[1])))
    if fitting == 0:
        raise RowFault(
            "too_long",
            f"expected the first shared chunk within max_length ({_shown(limits)}), got rows of "
            f"{_shown(sizes)} without one.",
        )
    return int(ends[0][fitting - 1]), int(ends[1][fitting - 1])


def _chunk_ends(chunk: np.ndarray, n: int) -> np.ndarray:
    """One past the last token of each of `n` chunks."""
    ends = np.zeros(n, np.int64)
    inside = np.flatnonzero(chunk >= 0)
    np.maximum.at(ends, chunk[inside], inside + 1)
    return ends


def _arrays(
    student: Rendered,
    teacher: Rendered,
    alignment: RowAlignment,
    student_kept: int,
    teacher_kept: int,
) -> PairedRow:
    number = np.where(alignment.supervised, np.cumsum(alignment.supervised) - 1, -1)
    number = np.append(number, -1).astype(np.int64)  # index -1: outside every chunk
    lengths = np.diff(student.byte_ends, prepend=0)[:student_kept]
    kept_end = int(student.byte_ends[student_kept - 1]) if student_kept else 0
    contents = [p for p in student.parts if p.kind == "content" and p.supervised]
    kept = sum(max(min(part.end, kept_end) - part.start, 0) for part in contents)
    student_chunk = number[alignment.student_chunk[:student_kept]]
    return PairedRow(
        student_ids=np.asarray(student.ids[:student_kept], np.int64),
        student_labels=labels(student)[:student_kept],
        student_chunk=student_chunk,
        teacher_ids=np.asarray(teacher.ids[:teacher_kept], np.int64),
        teacher_labels=labels(teacher)[:teacher_kept],
        teacher_chunk=number[alignment.teacher_chunk[:teacher_kept]],
        student_bytes=kept,
        aligned_bytes=int(lengths[student_chunk >= 0].sum()),
        cut_bytes=sum(part.end - part.start for part in contents) - kept,
    )


def labels(rendered: Rendered) -> np.ndarray:
    """int64 [T]: the ids of tokens wholly inside what is taught, -100 elsewhere.

    A token that also spells template text or a prompt is not taught; nor is the first token,
    which nothing predicts.
    """
    ids = np.asarray(rendered.ids, np.int64)
    ends = rendered.byte_ends
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    special = rendered.encoder.bytes.special[ids] if len(ids) else np.zeros(0, bool)
    taught = np.zeros(len(ids), bool)
    for part in rendered.parts:
        if not part.supervised:
            continue
        if part.kind == "special":
            taught[part.start : part.end] = True
        else:  # a token without bytes (a bare prefix space) belongs to what follows it
            inside = (starts >= part.start) & (ends <= part.end) & (starts < part.end)
            taught |= inside & ~special
    taught[:1] = False
    return np.where(taught, ids, IGNORED)
