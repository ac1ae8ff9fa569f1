"""Tokens as strings of symbols, so that an edit distance can be taken between them.

A symbol is a byte or a character of what a token spells. A special token spells nothing; where it
has to be aligned it is one symbol of its own, the same on both sides for tokens of one role.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_SPECIAL = 0x100
"""The first symbol that stands for no byte."""


def byte_strings(tokens: Sequence[bytes], *, drop_spaces: bool = False) -> list[str]:
    """Every token as a string whose characters U+0000 to U+00FF stand for its bytes.

    Args:
        tokens: What each id spells; nothing for special tokens.
        drop_spaces: Leave every ASCII space out, as CDM's released code does.

    Returns:
        V strings; empty for special tokens.
    """
    return _strings((data.decode("latin-1") for data in tokens), drop_spaces)


def character_strings(tokens: Sequence[bytes], *, drop_spaces: bool = False) -> list[str]:
    """Every token as its characters; a byte that is no valid UTF-8 is a symbol of its own.

    So the pieces of a character that was cut differ from one another and from every character.
    """
    return _strings((data.decode("utf-8", "surrogateescape") for data in tokens), drop_spaces)


def with_specials(
    student: list[str],
    teacher: list[str],
    student_special: np.ndarray,
    teacher_special: np.ndarray,
    shared: np.ndarray,
) -> tuple[list[str], list[str]]:
    """The same byte strings with one symbol for every special token.

    Args:
        student: Strings of the student's ids, from `byte_strings`.
        teacher: Strings of the teacher's.
        student_special: bool [Vs].
        teacher_special: bool [Vt].
        shared: int64 [S, 2], (student id, teacher id); special tokens of one role among them get
            one symbol, every other special token a symbol that no other token has.
    """
    student, teacher = list(student), list(teacher)
    own = np.flatnonzero(student_special).tolist()
    for id in own:
        student[id] = chr(_SPECIAL + id)
    role = {t: s for s, t in shared.tolist() if student_special[s]}
    beyond = len(student)
    for id in np.flatnonzero(teacher_special).tolist():
        teacher[id] = chr(_SPECIAL + role.get(id, beyond + id))
    return student, teacher


@dataclass(frozen=True, eq=False)
class SymbolTable:
    """The strings of two vocabularies as arrays of small integers.

    Attributes:
        symbols: How many different symbols there are.
        student: int32, all the student's strings joined.
        student_starts: int64 [Vs + 1], where each begins.
        student_mask: uint64 [Vs]: the bit `symbol % 64` is set for each symbol of the token.
        teacher: As `student`.
        teacher_starts: int64 [Vt + 1].
        teacher_mask: uint64 [Vt].
    """

    symbols: int
    student: np.ndarray
    student_starts: np.ndarray
    student_mask: np.ndarray
    teacher: np.ndarray
    teacher_starts: np.ndarray
    teacher_mask: np.ndarray


def symbol_table(student: Sequence[str], teacher: Sequence[str]) -> SymbolTable:
    """Number the symbols of both sides, the most frequent first, and lay the strings out.

    Example:
        >>> table = symbol_table(["ab", ""], ["b"])
        >>> table.symbols, table.student.tolist(), table.teacher.tolist()
        (2, [1, 0], [0])
    """
    (one, one_starts), (two, two_starts) = _joined(student), _joined(teacher)
    known, code, count = np.unique(
        np.concatenate([one, two]), return_inverse=True, return_counts=True
    )
    rank = np.empty(len(known), np.int32)
    rank[np.argsort(-count, kind="stable")] = np.arange(len(known), dtype=np.int32)
    code = rank[code.reshape(-1)]
    one, two = code[: len(one)], code[len(one) :]
    return SymbolTable(
        len(known),
        one,
        one_starts,
        _masks(one, one_starts),
        two,
        two_starts,
        _masks(two, two_starts),
    )


def _strings(texts: Iterable[str], drop_spaces: bool) -> list[str]:
    return [text.replace(" ", "") if drop_spaces else text for text in texts]


def _joined(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The code points of all strings, and where each string begins."""
    data = "".join(strings).encode("utf-32-le", "surrogatepass")
    starts = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    return np.frombuffer(data, np.uint32), starts


def _masks(symbols: np.ndarray, starts: np.ndarray) -> np.ndarray:
    masks = np.zeros(len(starts), np.uint64)
    if len(symbols):
        bits = np.uint64(1) << (symbols % 64).astype(np.uint64)
        filled = np.flatnonzero(np.diff(starts))
        masks[filled] = np.bitwise_or.reduceat(bits, starts[filled])
    return masks[:-1]
