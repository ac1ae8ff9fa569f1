"""How well two tokenizers meet: on texts, by script and category, and in their vocabularies.

Everything here is a plain dataclass, ready for JSON by `dataclasses.asdict`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosstill.align.chunks import AlignedFraction, Alignment, align
from crosstill.align.scripts import category_of, script_of
from crosstill.errors import AlignmentError, DataError
from crosstill.text.bytes import TokenBytes
from crosstill.text.encode import text_encoder


@dataclass(frozen=True)
class GroupCoverage:
    """How two tokenizers meet on the characters of one script or category.

    A token or chunk that covers characters of several groups counts in each by its bytes.

    Attributes:
        name: The script or category.
        bytes: Bytes of text in it, as the student spells them.
        share: Its share of all bytes.
        aligned: Share of its bytes that lie in chunks.
        one_to_one: Share of its bytes in chunks of one token on either side.
        bytes_per_chunk: Mean length of its chunks; 0 without chunks.
        student_bytes_per_token: Mean bytes a student's token spells there.
        teacher_bytes_per_token: Mean bytes a teacher's token spells there.
    """

    name: str
    bytes: int
    share: float
    aligned: float
    one_to_one: float
    bytes_per_chunk: float
    student_bytes_per_token: float
    teacher_bytes_per_token: float


@dataclass(frozen=True)
class Coverage:
    """How two tokenizers meet on some texts.

    Attributes:
        texts: How many texts were given.
        rewritten: How many of them a normaliser rewrote.
        skipped: How many could not be aligned (unknown tokens, unknown rewriting, bad Unicode).
        bytes: Bytes of the texts that were aligned.
        student_tokens: Tokens of the student for them.
        teacher_tokens: Tokens of the teacher.
        chunks: Chunks.
        aligned: Share of bytes and of either side's tokens that lie in chunks.
        scripts: By script, most bytes first.
        categories: By category, most bytes first.
        advice: One line on what the numbers mean.
    """

    texts: int
    rewritten: int
    skipped: int
    bytes: int
    student_tokens: int
    teacher_tokens: int
    chunks: int
    aligned: AlignedFraction
    scripts: list[GroupCoverage]
    categories: list[GroupCoverage]
    advice: str


@dataclass(frozen=True)
class LengthOverlap:
    """Tokens of one length in bytes: how many either side has, and how many both have."""

    length: int
    student: int
    teacher: int
    shared: int


@dataclass(frozen=True)
class VocabularyOverlap:
    """Tokens that spell exactly the same bytes on both sides; special tokens are left out.

    Two ids of one tokenizer that spell the same bytes count once.

    Attributes:
        student: Different byte strings the student's tokens spell.
        teacher: Different byte strings the teacher's tokens spell.
        shared: Those of both.
        student_share: shared / student.
        teacher_share: shared / teacher.
        by_length: The same counts for each length in bytes.
        advice: One line on what the numbers mean.
    """

    student: int
    teacher: int
    shared: int
    student_share: float
    teacher_share: float
    by_length: list[LengthOverlap]
    advice: str


def by_script(texts: Iterable[str], student_tokenizer: Any, teacher_tokenizer: Any) -> Coverage:
    """How two tokenizers meet on texts, overall, by script and by category.

    Args:
        texts: The texts; those that cannot be aligned are counted and left out.
        student_tokenizer: A fast tokenizer or a `TextEncoder`.
        teacher_tokenizer: The same.

    Raises:
        TokenizerError: A tokenizer cannot be read as bytes.
    """
    student, teacher = text_encoder(student_tokenizer), text_encoder(teacher_tokenizer)
    total: Counter[str] = Counter()
    scripts, categories = _Groups(), _Groups()
    for text in texts:
        total["texts"] += 1
        try:
            alignment = align(text, student, teacher)
        except (AlignmentError, DataError):
            total["skipped"] += 1
            continue
        total["rewritten"] += alignment.rewritten
        total["chunks"] += len(alignment.chunks)
        for side, ids, chunk in _sides(alignment):
            total[side] += len(ids)
            total[f"aligned {side}"] += int((chunk >= 0).sum())
        per_byte = _PerByte(alignment)
        total["bytes"] += len(per_byte.student_text)
        total["aligned bytes"] += int(per_byte.aligned.sum())
        scripts.add(per_byte, script_of)
        categories.add(per_byte, category_of)
    aligned = AlignedFraction(
        *(_part(total[f"aligned {what}"], total[what]) for what in ("bytes", "student", "teacher"))
    )
    by_script, by_category = scripts.rows(), categories.rows()
    return Coverage(
        texts=total["texts"],
        rewritten=total["rewritten"],
        skipped=total["skipped"],
        bytes=total["bytes"],
        student_tokens=total["student"],
        teacher_tokens=total["teacher"],
        chunks=total["chunks"],
        aligned=aligned,
        scripts=by_script,
        categories=by_category,
        advice=_advice_on_texts(total, by_script, by_category),
    )


def _sides(alignment: Alignment) -> Iterator[tuple[str, list[int], np.ndarray]]:
    yield "student", alignment.student_ids, alignment.student_chunk
    yield "teacher", alignment.teacher_ids, alignment.teacher_chunk


class _PerByte:
    """Shares of tokens and chunks, spread over the bytes of one aligned text.

    Where a normaliser rewrote a side, both sides' bytes are those they spell themselves.
    """

    def __init__(self, alignment: Alignment):
        self.student_text, self.student_tokens, chunk = _spread(
            alignment.student_ids,
            alignment.student_chunk,
            alignment.student_spelling,
            alignment.student_extra,
        )
        self.teacher_text, self.teacher_tokens, _ = _spread(
            alignment.teacher_ids,
            alignment.teacher_chunk,
            alignment.teacher_spelling,
            alignment.teacher_extra,
        )
        n = len(alignment.chunks)
        single = np.array(
            [s1 - s0 == t1 - t0 == 1 for (s0, s1), (t0, t1) in alignment.chunks], bool
        )
        self.aligned = chunk >= 0
        length = np.bincount(chunk[self.aligned], minlength=n)
        self.chunks = np.zeros(len(chunk))
        self.chunks[self.aligned] = 1 / length[chunk[self.aligned]]
        self.single = np.zeros(len(chunk), bool)
        self.single[self.aligned] = single[chunk[self.aligned]]


def _spread(
    ids: list[int], chunk: np.ndarray, spelling: TokenBytes, extra: int
) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The bytes of a side, and for each of them its share of a token and its chunk."""
    text = spelling.spell(ids)
    lengths = spelling.lengths[np.asarray(ids, np.int64)].astype(np.int64)
    share = np.repeat(1 / np.maximum(lengths, 1), lengths)
    return text[extra:], share[extra:], np.repeat(chunk, lengths)[extra:]


class _Groups:
    """Sums by group of characters."""

    def __init__(self) -> None:
        self.sums: dict[str, np.ndarray] = {}

    def add(self, per_byte: _PerByte, group_of: Any) -> None:
        """Adds one text: what the columns of a row are is told in `rows`."""
        columns = (
            np.ones(len(per_byte.aligned)),
            per_byte.aligned,
            per_byte.single,
            per_byte.chunks,
            per_byte.student_tokens,
        )
        self._add(per_byte.student_text, group_of, columns, 0)
        ones = np.ones(len(per_byte.teacher_tokens))
        self._add(per_byte.teacher_text, group_of, (ones, per_byte.teacher_tokens), len(columns))

    def _add(self, text: bytes, group_of: Any, columns: tuple[np.ndarray, ...], at: int) -> None:
        names, index = _groups_of_bytes(text, group_of)
        for k, column in enumerate(columns):
            sums = np.bincount(index, weights=column, minlength=len(names))
            for name, value in zip(names, sums.tolist(), strict=True):
                self.sums.setdefault(name, np.zeros(7))[at + k] += value

    def rows(self) -> list[GroupCoverage]:
        """One row a group, most bytes first."""
        total = sum(row[0] for row in self.sums.values())
        rows = [
            GroupCoverage(
                name=name,
                bytes=round(n),
                share=_part(n, total),
                aligned=_part(aligned, n),
                one_to_one=_part(single, n),
                bytes_per_chunk=_mean(aligned, chunks),
                student_bytes_per_token=_mean(n, student),
                teacher_bytes_per_token=_mean(teacher_bytes, teacher),
            )
            for name, (n, aligned, single, chunks, student, teacher_bytes, teacher) in (
                (name, row.tolist()) for name, row in self.sums.items()
            )
        ]
        return sorted(rows, key=lambda row: (-row.bytes, row.name))


def _groups_of_bytes(text: bytes, group_of: Any) -> tuple[list[str], np.ndarray]:
    """The names of the groups in a text, and for each byte the index of its group's name."""
    chars = text.decode("utf-8", errors="surrogateescape")
    code = np.frombuffer(chars.encode("utf-32-le", "surrogatepass"), np.uint32)
    seen, which = np.unique(code, return_inverse=True)
    groups = [group_of(chr(c)) for c in seen.tolist()]
    names = sorted(set(groups))
    index = np.array([names.index(group) for group in groups], np.int64)[which]
    sizes = np.ones(len(code), np.int64) + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)
    sizes[(code >= 0xDC80) & (code <= 0xDCFF)] = 1  # a byte that is no character
    return names, np.repeat(index, sizes)


def _part(value: float, total: float) -> float:
    """A share; all of nothing is 1."""
    return value / total if total else 1.0


def _mean(total: float, count: float) -> float:
    return total / count if count else 0.0


def vocabulary_overlap(student_tokenizer: Any, teacher_tokenizer: Any) -> VocabularyOverlap:
    """Which tokens of two tokenizers spell exactly the same bytes.

    Args:
        student_tokenizer: A fast tokenizer or a `TextEncoder`.
        teacher_tokenizer: The same.

    Raises:
        TokenizerError: A tokenizer cannot be read as bytes.
    """
    student, teacher = (
        _spellings(text_encoder(tokenizer).bytes)
        for tokenizer in (student_tokenizer, teacher_tokenizer)
    )
    shared = student & teacher
    counts = [Counter(map(len, tokens)) for tokens in (student, teacher, shared)]
    lengths = sorted(set(counts[0]) | set(counts[1]))
    return VocabularyOverlap(
        student=len(student),
        teacher=len(teacher),
        shared=len(shared),
        student_share=_part(len(shared), len(student)),
        teacher_share=_part(len(shared), len(teacher)),
        by_length=[LengthOverlap(n, *(count[n] for count in counts)) for n in lengths],
        advice=_advice_on_vocabularies(len(shared), len(student), len(teacher)),
    )


def _spellings(table: TokenBytes) -> set[bytes]:
    """Everything the tokens of a vocabulary spell."""
    ids = np.flatnonzero(table.lengths > 0)
    buffer, ends = table.spell(ids), np.cumsum(table.lengths[ids], dtype=np.int64).tolist()
    return {buffer[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)}


def _advice_on_texts(
    total: Counter[str], scripts: list[GroupCoverage], categories: list[GroupCoverage]
) -> str:
    if not total["bytes"]:
        return "No text could be aligned: check the texts and the tokenizers."
    said = []
    single = sum(row.one_to_one * row.share for row in scripts)
    per_chunk = total["bytes"] / max(total["chunks"], 1)
    if single >= 0.6:
        said.append(
            f"{single:.0%} of the bytes lie in chunks of one token on both sides: nearly as good "
            "as a shared tokenizer."
        )
    elif per_chunk <= 12:
        said.append(
            f"A chunk holds {per_chunk:.1f} bytes on average: enough shared edges for chunk "
            "likelihoods (alm); objectives that need equal tokens would use "
            f"{single:.0%} of the bytes."
        )
    else:
        said.append(
            f"A chunk holds {per_chunk:.1f} bytes on average: the teacher's signal is coarse; give "
            "it more text, or transfer the student to a finer tokenizer first."
        )
    coarse = [
        row
        for row in (*scripts, *categories)
        if row.share >= 0.02 and row.bytes_per_chunk > 2 * per_chunk
    ]
    if coarse:
        said.append(
            "Coarsest: "
            + ", ".join(f"{r.name} ({r.bytes_per_chunk:.0f} bytes a chunk)" for r in coarse[:3])
            + "."
        )
    if total["rewritten"]:
        said.append(
            f"{total['rewritten']} of {total['texts']} texts are rewritten by a normaliser."
        )
    if total["skipped"]:
        said.append(f"{total['skipped']} of {total['texts']} texts cannot be aligned and are lost.")
    return " ".join(said)


def _advice_on_vocabularies(shared: int, student: int, teacher: int) -> str:
    if shared == student == teacher:
        return "Both vocabularies spell the same bytes: any objective for equal tokenizers works."
    share = min(_part(shared, student), _part(shared, teacher))
    if share >= 0.5:
        return (
            f"At least {share:.0%} of either vocabulary is shared: objectives that map tokens to "
            "tokens have much to work with, chunk objectives (alm) too."
        )
    return (
        f"Only {share:.0%} of one vocabulary is shared: prefer objectives on chunks (alm), which "
        "need shared edges and no shared tokens."
    )
