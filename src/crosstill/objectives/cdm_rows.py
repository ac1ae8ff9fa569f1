"""From groups of rows to the tokens that CDM compares there, in blocks of rows.

Nothing here has a graph. Axes: E entries of groups, G groups, K top tokens, P pairs, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.align.candidates import CandidateMap
from crosstill.functional.cdm import group_rows, row_entropy
from crosstill.functional.embedspace import cosine_distance
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.topk import top_ids
from crosstill.objectives.base import Signal
from crosstill.objectives.cdm_groups import Entries, RowGroups

_CACHED = 2**18
"""Logits looked at together on a CPU: a row or two of a large vocabulary stay in its cache."""

_LARGE = 2**26
"""Logits looked at together elsewhere."""

_HELD = 2**28
"""Logits of the teacher that are held at once."""

_COMPARED = 64
"""Groups whose embeddings are compared at once."""

Take = Callable[[Tensor, Tensor], Tensor]
"""From sequences [n] and positions [n] to the rows of logits there, [n, V]."""


class HeldRows:
    """Rows of the teacher's logits, made once.

    Args:
        signal: The teacher's.
        entries: Which rows.
        device: Where they are.
    """

    def __init__(self, signal: Signal, entries: Entries, device: torch.device) -> None:
        row, position = entries.index(device)
        order = torch.argsort(self._key(row, position))
        self._keys = self._key(row, position)[order]
        self._rows = signal.rows(row[order], position[order])

    def take(self, row: Int64[Tensor, " n"], position: Int64[Tensor, " n"]) -> Tensor:
        """Some of them, [n, V]."""
        return self._rows[self._at(row, position)]

    def columns(
        self, row: Int64[Tensor, " n"], position: Int64[Tensor, " n"], ids: Int64[Tensor, "n P"]
    ) -> Float[Tensor, "n P"]:
        """Some columns of each."""
        return self._rows[self._at(row, position).unsqueeze(1), ids]

    def _at(self, row: Tensor, position: Tensor) -> Tensor:
        return torch.searchsorted(self._keys, self._key(row, position))

    @staticmethod
    def _key(row: Tensor, position: Tensor) -> Tensor:
        return (row << 32) + position


@dataclass(frozen=True, eq=False)
class MappedGroups:
    """What is known of groups once their tokens are paired.

    Attributes:
        groups: The groups.
        student_ids: The student's token of each pair.
        teacher: The teacher's logit of each pair.
        mapped: Which columns are pairs.
        norms: Log-sum-exp of the student's and of the teacher's rows.
        coverage: The mean of the shares of both sides' top tokens that have a pair.
    """

    groups: RowGroups
    student_ids: Int64[Tensor, "G P"]
    teacher: Float[Tensor, "G P"]
    mapped: Bool[Tensor, "G P"]
    norms: tuple[Float[Tensor, " G"], Float[Tensor, " G"]]
    coverage: Float[Tensor, " G"]

    def widened(self, pairs: int) -> "MappedGroups":
        """The same with room for so many pairs."""
        ids, teacher, mapped = (
            torch.nn.functional.pad(x, (0, pairs - x.shape[1]))
            for x in (self.student_ids, self.teacher, self.mapped)
        )
        return replace(self, student_ids=ids, teacher=teacher, mapped=mapped)


@dataclass(frozen=True, eq=False)
class Mapper:
    """Pairs the top tokens of groups.

    Attributes:
        maps: The map between two lists of tokens.
        k: Top tokens of each side.
        space: Both embeddings in one space, if tokens are compared in it.
    """

    maps: CandidateMap
    k: int
    space: tuple[Float[Tensor, "Vs R"], Float[Tensor, "Vt R"]] | None

    def __call__(
        self, student: Float[Tensor, "B Ts Vs"], teacher: HeldRows, groups: RowGroups
    ) -> MappedGroups:
        """Pair the tokens of some groups.

        Args:
            student: The student's logits.
            teacher: Rows of the teacher's, all that the groups hold among them.
            groups: The groups.
        """
        device = student.device
        student_top, student_norm = self._top(
            lambda row, position: student[row, position], groups.student, device
        )
        teacher_top, teacher_norm = self._top(teacher.take, groups.teacher, device)
        distance = self._distance(student_top, teacher_top)
        found = self.maps(student_top.cpu().numpy(), teacher_top.cpu().numpy(), distance)
        teacher_ids = torch.from_numpy(found.teacher_ids).to(device)
        tops = torch.tensor([student_top.shape[1], teacher_top.shape[1]], device=device)
        pairs = torch.arange(teacher_ids.shape[1], device=device)
        return MappedGroups(
            groups,
            torch.from_numpy(found.student_ids).to(device),
            grouped_columns(teacher.columns, groups.teacher, teacher_ids),
            pairs < torch.from_numpy(found.count).to(device).unsqueeze(1),
            (student_norm, teacher_norm),
            (torch.from_numpy(found.covered).to(device) / tops.clamp(min=1)).mean(1),
        )

    def _top(
        self, take: Take, entries: Entries, device: torch.device
    ) -> tuple[Int64[Tensor, "G K"], Float[Tensor, " G"]]:
        """The top tokens of each group's mean row, and its log-sum-exp."""
        ids, norms = [], []
        for logits in _mean_rows(take, entries, device):
            ids.append(top_ids(logits, self.k))
            norms.append(logits.logsumexp(1))
        if not ids:
            return torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0)
        return torch.cat(ids), torch.cat(norms)

    def _distance(
        self, student_top: Int64[Tensor, "G K"], teacher_top: Int64[Tensor, "G K"]
    ) -> np.ndarray | None:
        if self.space is None:
            return None
        one, two = (side.to(student_top.device) for side in self.space)
        parts = [
            cosine_distance(one[a], two[b]).float().cpu()
            for a, b in zip(student_top.split(_COMPARED), teacher_top.split(_COMPARED), strict=True)
        ]
        return torch.cat(parts).numpy()


def grouped_columns(
    columns: Callable[[Tensor, Tensor, Tensor], Tensor],
    entries: Entries,
    ids: Int64[Tensor, "G P"],
) -> Float[Tensor, "G P"]:
    """Some columns of each group's mean row, without the other columns.

    Args:
        columns: From sequences [n], positions [n] and ids [n, P] to the logits there.
        entries: The rows of each group.
        ids: The columns of each group.
    """
    row, position = entries.index(ids.device)
    group = entries.group(ids.device)
    values = columns(row, position, ids[group])
    return group_rows(values, group, entries.weights(values), len(ids))


def row_entropies(take: Take, entries: Entries, device: torch.device) -> Float[Tensor, " E"]:
    """The entropy of each row in nats, every row a group by itself."""
    return torch.cat([row_entropy(rows) for rows in _mean_rows(take, entries, device)])


def teacher_entropies(
    signal: Signal, entries: Entries, device: torch.device
) -> tuple[Float[Tensor, " E"], HeldRows | None]:
    """The entropy of each of the teacher's rows, and the rows themselves if they may be held."""
    found, held = [], None
    for first, last in _runs(entries.starts, max(1, _HELD // signal.vocab_size)):
        part = entries.part(first, last)
        held = HeldRows(signal, part, device)
        found.append(row_entropies(held.take, part, device))
    return torch.cat(found), held if len(found) == 1 else None


def spans(groups: RowGroups, vocab_size: int) -> Iterator[RowGroups]:
    """Cut groups into runs whose teacher rows may be held at once."""
    for first, last in _runs(groups.teacher.starts, max(1, _HELD // vocab_size)):
        yield groups.part(first, last)


def _mean_rows(take: Take, entries: Entries, device: torch.device) -> Iterator[Tensor]:
    """The mean rows of the groups in order, a block at a time, float32 at least."""
    if len(entries.position) == 0:
        return
    row, position = entries.index(device)
    group = entries.group(device)
    size = take(row[:1], position[:1]).shape[1]
    block = max(1, (_CACHED if device.type == "cpu" else _LARGE) // size)
    for first, last in _runs(entries.starts, block):
        start, stop = int(entries.starts[first]), int(entries.starts[last])
        rows = take(row[start:stop], position[start:stop])
        if stop - start == last - first:
            yield rows.to(accumulation_dtype(rows))
        else:
            weight = entries.weights(rows)[start:stop]
            yield group_rows(rows, group[start:stop] - first, weight, last - first)


def _runs(starts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Runs of groups with at most `limit` entries each, but at least one group."""
    first, count = 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + limit, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last
