"""Which rows of both models CDM puts together: by dynamic time warping, or by exact chunks.

Arrays on the CPU; a row is the position that predicts a token. Axes: E entries, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from crosstill.align.dtw import Path, byte_window, dtw_path, entropy_weights, token_distances
from crosstill.align.groups import Side, matched, path_groups, ranges
from crosstill.align.symbols import SymbolTable
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.rows import chunk_rows, label_rows


@dataclass(frozen=True, eq=False)
class Entries:
    """The rows of one side.

    Attributes:
        batch: int64 [E], which sequence.
        position: int64 [E], which row of it.
        weight: float64 [E]; the weights of a group add up to 1.
        starts: int64 [G + 1]: group g has the entries from `starts[g]` to before `starts[g + 1]`.
    """

    batch: np.ndarray
    position: np.ndarray
    weight: np.ndarray
    starts: np.ndarray

    def group(self, device: torch.device) -> Tensor:
        """The group of each entry, int64 [E]."""
        width = np.diff(self.starts)
        return torch.from_numpy(np.repeat(np.arange(len(width)), width)).to(device)

    def weights(self, like: Tensor) -> Tensor:
        """`weight` in the precision in which such values are summed."""
        return torch.from_numpy(self.weight).to(accumulation_dtype(like)).to(like.device)

    def part(self, first: int, last: int) -> "Entries":
        """The entries of the groups from `first` to before `last`."""
        start, stop = self.starts[first], self.starts[last]
        return Entries(
            self.batch[start:stop],
            self.position[start:stop],
            self.weight[start:stop],
            self.starts[first : last + 1] - start,
        )

    def chosen(self, groups: np.ndarray) -> "Entries":
        """The entries of some groups."""
        width = np.diff(self.starts)[groups]
        at = ranges(self.starts[groups], width)
        starts = np.concatenate([[0], np.cumsum(width)])
        return Entries(self.batch[at], self.position[at], self.weight[at], starts)

    @staticmethod
    def joined(parts: "Sequence[Entries]") -> "Entries":
        """The entries of several, their groups one after the other."""
        widths = np.concatenate([np.diff(part.starts) for part in parts])
        return Entries(
            np.concatenate([part.batch for part in parts]),
            np.concatenate([part.position for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([[0], np.cumsum(widths)]),
        )


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Groups of rows of both sides.

    Attributes:
        student: The student's rows.
        teacher: The teacher's.
        weight: float64 [G], what each group counts.
        matched: bool [G], whether both sides spell the same there.
        gap: float64 [G], how much the sequence's path costs more than the cheapest at the most, as
            a share of its cost; 0.0 for exact paths and for chunks.
    """

    student: Entries
    teacher: Entries
    weight: np.ndarray
    matched: np.ndarray
    gap: np.ndarray

    def part(self, first: int, last: int) -> "RowGroups":
        """The groups from `first` to before `last`."""
        return RowGroups(
            self.student.part(first, last),
            self.teacher.part(first, last),
            self.weight[first:last],
            self.matched[first:last],
            self.gap[first:last],
        )

    @staticmethod
    def joined(parts: "Sequence[RowGroups]") -> "RowGroups":
        """Several, one after the other."""
        return RowGroups(
            Entries.joined([part.student for part in parts]),
            Entries.joined([part.teacher for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.matched for part in parts]),
            np.concatenate([part.gap for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Spelling:
    """What the alignment by dynamic time warping knows of both vocabularies.

    Attributes:
        student: The student's tokens as strings.
        teacher: The teacher's.
        table: The same as arrays.
    """

    student: list[str]
    teacher: list[str]
    table: SymbolTable


@dataclass(frozen=True, eq=False)
class Response:
    """The supervised tokens of one sequence on one side; T of them.

    Attributes:
        sequence: Its place in the batch.
        position: int64 [T], the rows that predict them.
        ids: int64 [T].
    """

    sequence: int
    position: np.ndarray
    ids: np.ndarray

    def entries(self) -> Entries:
        """Its rows, each a group by itself."""
        size = len(self.ids)
        sequence = np.full(size, self.sequence, np.int64)
        return Entries(sequence, self.position, np.ones(size), np.arange(size + 1))


def responses(batch: Mapping[str, Tensor]) -> list[tuple[Response, Response]]:
    """The student's and the teacher's supervised tokens of each sequence that has some on both."""
    sides = []
    for side in ("student", "teacher"):
        rows = [index.cpu().numpy() for index in label_rows(batch[f"{side}_labels"])]
        bounds = np.searchsorted(rows[0], np.arange(len(batch[f"{side}_labels"]) + 1))
        sides.append(
            [
                Response(k, rows[1][start:end], rows[2][start:end])
                for k, (start, end) in enumerate(pairwise(bounds))
            ]
        )
    return [pair for pair in zip(*sides, strict=True) if len(pair[0].ids) and len(pair[1].ids)]


def warped(
    student: Response,
    teacher: Response,
    entropies: tuple[np.ndarray, np.ndarray],
    spelling: Spelling,
    *,
    integer: bool,
    band: int,
    rows: str,
) -> RowGroups:
    """Group the rows of one sequence by dynamic time warping.

    Args:
        student: Its supervised tokens.
        teacher: The teacher's.
        entropies: nats, of the student's and of the teacher's rows.
        spelling: The vocabularies.
        integer: As in `entropy_weights`.
        band: Tokens on either side of the byte diagonal; 0 for the exact path.
        rows: As in `path_groups`.

    Returns:
        Groups that count, together, as much as the student has supervised tokens.
    """
    path = _path(student, teacher, entropies, spelling, integer=integer, band=band)
    groups = path_groups(path, rows=rows)
    same = matched(groups, teacher.ids, student.ids, spelling.table)
    total = len(student.ids)
    return RowGroups(
        _entries(student, groups.student, groups.count),
        _entries(teacher, groups.teacher, groups.count),
        np.full(groups.count, total / groups.count),
        same,
        np.full(groups.count, path.gap / path.cost if path.cost > 0 else 0.0),
    )


def chunked(batch: Mapping[str, Tensor], *, rows: str) -> RowGroups:
    """Group the rows of a batch by its chunks; each counts 1.

    Args:
        batch: The collated batch.
        rows: "mean" of all rows that predict a chunk's tokens, or the "first" of each side.
    """
    chunks = chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    sequence, chunk = chunks.batch.cpu().numpy(), chunks.chunk.cpu().numpy()
    count = len(sequence)
    sides = []
    for side, first in (("student", chunks.student_row), ("teacher", chunks.teacher_row)):
        if rows == "first":
            one = np.ones(count)
            starts = np.arange(count + 1, dtype=np.int64)
            sides.append(Entries(sequence, first.cpu().numpy(), one, starts))
        else:
            sides.append(_members(batch[f"{side}_chunk"].cpu().numpy(), sequence, chunk))
    student, teacher = sides
    return RowGroups(student, teacher, np.ones(count), np.ones(count, bool), np.zeros(count))


def _path(
    student: Response,
    teacher: Response,
    entropies: tuple[np.ndarray, np.ndarray],
    spelling: Spelling,
    *,
    integer: bool,
    band: int,
) -> Path:
    texts = (
        [spelling.teacher[id] for id in teacher.ids],
        [spelling.student[id] for id in student.ids],
    )
    window = None
    if band:
        ends = [np.cumsum([len(text) for text in side]) for side in texts]
        window = byte_window(ends[0], ends[1], band)
    return dtw_path(
        token_distances(*texts),
        entropy_weights(entropies[1], integer=integer),
        entropy_weights(entropies[0], integer=integer),
        window=window,
    )


def _entries(response: Response, side: Side, count: int) -> Entries:
    return Entries(
        np.full(len(side.token), response.sequence, np.int64),
        response.position[side.token],
        side.weight,
        np.searchsorted(side.group, np.arange(count + 1)),
    )


def _members(side: np.ndarray, sequence: np.ndarray, chunk: np.ndarray) -> Entries:
    """The rows that predict each token of each chunk; `side` is [B, T]."""
    row, token = np.nonzero(side >= 0)
    width = side.shape[1] + int(chunk.max(initial=0)) + 1  # above every chunk index
    key, wanted = row * width + side[row, token], sequence * width + chunk
    group = np.searchsorted(wanted, key)
    kept = group < len(wanted)
    kept[kept] = wanted[group[kept]] == key[kept]
    row, token, group = row[kept], token[kept], group[kept]
    starts = np.searchsorted(group, np.arange(len(wanted) + 1))
    weight = (1.0 / np.diff(starts))[group]
    return Entries(row, token - 1, weight, starts)
