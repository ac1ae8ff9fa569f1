"""From groups of rows to the tokens that CDM compares there, in blocks of rows.

Nothing here has a graph. Axes: E entries of groups, G groups, K top tokens, P pairs, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.align.candidates import CandidateMap
from crosstill.functional.cdm import compiled, group_rows, row_summary
from crosstill.functional.embedspace import cosine_distance
from crosstill.functional.numerics import accumulation_dtype
from crosstill.objectives.base import Signal
from crosstill.objectives.cdm_groups import Entries, RowGroups

_CACHED = 2**18
"""Logits looked at together on a CPU: a row or two of a large vocabulary stay in its cache."""

_COMPILED = 2**21
"""The same for each thread where a compiled loop takes row by row: here calls cost, not rows."""

_LARGE = 2**26
"""Logits looked at together elsewhere."""

_HELD = 2**28
"""Logits of the teacher that are held at once."""

_COMPARED = 64
"""Groups whose embeddings are compared at once."""


class Logits:
    """Rows of logits that are at hand.

    Args:
        logits: All of them.
    """

    def __init__(self, logits: Float[Tensor, "B T V"]) -> None:
        self._logits = logits
        self.device = logits.device

    def take(self, row: np.ndarray, position: np.ndarray) -> Float[Tensor, "n V"]:
        """Some rows; a stretch of one sequence is not copied."""
        if len(row) and (row == row[0]).all() and _is_stretch(position):
            return self._logits[int(row[0]), int(position[0]) : int(position[-1]) + 1]
        return self._logits[self._index(row), self._index(position)]

    def columns(
        self, row: np.ndarray, position: np.ndarray, ids: Int64[Tensor, "n P"]
    ) -> Float[Tensor, "n P"]:
        """Some columns of each row, with the graph."""
        return self._logits[self._index(row).unsqueeze(1), self._index(position).unsqueeze(1), ids]

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(numbers).to(self.device)


class HeldRows:
    """Rows of the teacher's logits, made once and held.

    Args:
        signal: The teacher's.
        entries: Which rows.
        device: Where they are.
    """

    def __init__(self, signal: Signal, entries: Entries, device: torch.device) -> None:
        self.device = device
        self._keys = np.unique((entries.batch << 32) + entries.position)
        row, position = self._keys >> 32, self._keys & 0xFFFFFFFF
        self._rows = signal.rows(
            torch.from_numpy(row).to(device), torch.from_numpy(position).to(device)
        )

    def take(self, row: np.ndarray, position: np.ndarray) -> Float[Tensor, "n V"]:
        """Some of them; a stretch is not copied."""
        at = self._at(row, position)
        if len(at) and _is_stretch(at):
            return self._rows[int(at[0]) : int(at[-1]) + 1]
        return self._rows[torch.from_numpy(at).to(self.device)]

    def columns(
        self, row: np.ndarray, position: np.ndarray, ids: Int64[Tensor, "n P"]
    ) -> Float[Tensor, "n P"]:
        """Some columns of each."""
        at = torch.from_numpy(self._at(row, position)).to(self.device)
        return self._rows[at.unsqueeze(1), ids]

    def _at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._keys, (row << 32) + position)


@dataclass(frozen=True, eq=False)
class RowFacts:
    """What is read of each of N rows of logits while it is in the cache.

    Attributes:
        top: The likeliest ids.
        norm: Log-sum-exp.
        entropy: Nats.
    """

    top: Int64[Tensor, "N K"]
    norm: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"]

    @staticmethod
    def joined(parts: "Sequence[RowFacts]") -> "RowFacts":
        """Of several, one after the other."""
        return RowFacts(
            torch.cat([part.top for part in parts]),
            torch.cat([part.norm for part in parts]),
            torch.cat([part.entropy for part in parts]),
        )

    def at(self, index: np.ndarray) -> "RowFacts":
        """Of some rows."""
        chosen = torch.from_numpy(index).to(self.top.device)
        return RowFacts(self.top[chosen], self.norm[chosen], self.entropy[chosen])


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
        self, teacher: HeldRows, groups: RowGroups, facts: tuple[RowFacts, RowFacts]
    ) -> MappedGroups:
        """Pair the tokens of some groups.

        Args:
            teacher: Rows of the teacher's, all that the groups hold among them.
            groups: The groups.
            facts: Of each group's mean row, on the student's side and on the teacher's.
        """
        own, other = facts
        device = own.top.device
        distance = self._distance(own.top, other.top)
        found = self.maps(own.top.cpu().numpy(), other.top.cpu().numpy(), distance)
        teacher_ids = torch.from_numpy(found.teacher_ids).to(device)
        tops = torch.tensor([own.top.shape[1], other.top.shape[1]], device=device)
        pairs = torch.arange(teacher_ids.shape[1], device=device)
        return MappedGroups(
            groups,
            torch.from_numpy(found.student_ids).to(device),
            grouped_columns(teacher, groups.teacher, teacher_ids),
            pairs < torch.from_numpy(found.count).to(device).unsqueeze(1),
            (own.norm, other.norm),
            (torch.from_numpy(found.covered).to(device) / tops).mean(1),
        )

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
    source: Logits | HeldRows, entries: Entries, ids: Int64[Tensor, "G P"]
) -> Float[Tensor, "G P"]:
    """Some columns of each group's mean row, without the other columns.

    Args:
        source: The logits.
        entries: The rows of each group.
        ids: The columns of each group.
    """
    group = entries.group(ids.device)
    values = source.columns(entries.batch, entries.position, ids[group])
    return group_rows(values, group, entries.weights(values), len(ids))


def row_facts(source: Logits | HeldRows, entries: Entries, k: int) -> RowFacts:
    """Read the mean row of each group, a block of rows at a time.

    Args:
        source: The logits.
        entries: The rows of each group, at least one group.
        k: Likeliest ids that are wanted.
    """
    found = [row_summary(logits, k) for logits in _mean_rows(source, entries)]
    return RowFacts(*map(torch.cat, zip(*found, strict=True)))


def group_facts(
    source: Logits | HeldRows, entries: Entries, k: int, known: RowFacts, position: np.ndarray
) -> RowFacts:
    """As `row_facts`, where those of single rows are known: only groups of several are read.

    Args:
        source: As there.
        entries: As there, of one sequence.
        k: As there.
        known: Of single rows.
        position: int64, ascending, which rows these are.
    """
    found = known.at(np.searchsorted(position, entries.position[entries.starts[:-1]]))
    several = np.flatnonzero(np.diff(entries.starts) > 1)
    if len(several):
        own = row_facts(source, entries.chosen(several), k)
        at = torch.from_numpy(several).to(found.top.device)
        found.top[at], found.norm[at] = own.top, own.norm
    return found


def teacher_facts(
    signal: Signal, entries: Entries, k: int, device: torch.device
) -> tuple[RowFacts, HeldRows | None]:
    """The facts of the teacher's rows, and the rows themselves if all may be held at once."""
    found, held = [], None
    for first, last in _spans(entries, signal):
        part = entries.part(first, last)
        held = HeldRows(signal, part, device)
        found.append(row_facts(held, part, k))
    return RowFacts.joined(found), held if len(found) == 1 else None


def held_parts(
    signal: Signal, groups: RowGroups, device: torch.device, held: HeldRows | None = None
) -> Iterator[tuple[RowGroups, HeldRows]]:
    """Groups in runs whose teacher rows may be held at once; `held` has all of them already."""
    if held is not None:
        yield groups, held
        return
    for first, last in _spans(groups.teacher, signal):
        part = groups.part(first, last)
        yield part, HeldRows(signal, part.teacher, device)


def _spans(entries: Entries, signal: Signal) -> Iterator[tuple[int, int]]:
    return _runs(entries.starts, max(1, _HELD // signal.vocab_size))


def _mean_rows(source: Logits | HeldRows, entries: Entries) -> Iterator[Tensor]:
    """The mean rows of the groups in order, a block at a time, float32 at least."""
    one = source.take(entries.batch[:1], entries.position[:1])
    for first, last in _runs(entries.starts, max(1, _together(one) // one.shape[1])):
        part = entries.part(first, last)
        rows = source.take(part.batch, part.position)
        if len(part.batch) == last - first:
            yield rows.to(accumulation_dtype(rows))
        else:
            group = part.group(source.device)
            yield group_rows(rows, group, part.weights(rows), last - first)


def _together(one: Float[Tensor, "1 V"]) -> int:
    """How many logits like those of a row are looked at together."""
    if one.device.type != "cpu":
        return _LARGE
    return _COMPILED * torch.get_num_threads() if compiled(one) else _CACHED


def _is_stretch(numbers: np.ndarray) -> bool:
    return int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1 and bool(
        (np.diff(numbers) == 1).all()
    )


def _runs(starts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Runs of groups with at most `limit` entries each, but at least one group."""
    first, count = 0, len(starts) - 1
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + limit, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last
