"""A new token is the mean of the old tokens that end with it (input) or begin with it (output).

Axes: Vs rows of the source vocabulary, Vt of the target, D hidden.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from crosstill.align.spellings import Ragged, lowest_ids
from crosstill.errors import ConfigError
from crosstill.text.rows import parse_row
from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport, assembled
from crosstill.transfer.initial.rows import averages
from crosstill.transfer.tables import Tables

EXACT = ("auto", "copy", "pool")


@dataclass(frozen=True)
class Suffix(Initialiser):
    """The mean of the source rows whose bytes end with a token's bytes; for the output, begin.

    An input row tells the body what the text has just come to. After the bytes of a new token the
    source would have read some token that ends with them: their mean is the best one row can do,
    in squares, while it is not known which. An output row scores what comes next. The source gives
    the bytes of a new token, where it begins one of its own tokens, the mass of all its tokens
    that begin with them: so output rows are means over those. A mean is too low there by what a
    sum of exponentials is above its mean; a bias learns it where there is one.

    Where no source token ends (begins) with the bytes, the last (first) token of their spelling
    stands for them, the longest such part that the source knows by itself. Tied tables have one row
    for both ends and get the input's, unless `untie` is set.

    Attributes:
        exact: what becomes of tokens that both vocabularies have: "copy" their rows, "pool" them
            with the others that end (begin) so, or "auto": pool where the target has bytes alone,
            since its byte stands for the end of any token; copy otherwise.
        by_count: weight source tokens by how often they occur in the texts, plus one.
        untie: give tied embeddings two tables.

    Source: our own; the two ends are treated apart as in the first and last subwords that
    embeddings have been made from.
    """

    name: ClassVar[str] = "suffix"
    exact: str = "auto"
    by_count: bool = False
    untie: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        if self.exact not in EXACT:
            raise ConfigError(
                f"initial.suffix.exact is {self.exact!r}, expected one of {', '.join(EXACT)}"
            )

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`.

        Raises:
            ConfigError: `by_count` without texts.
            DataError: `by_count`, and a text that the source's tokenizer cannot read.
        """
        weights = self._weights(source)
        kept = source.by_role if self._pools(source) else source.kept
        open_ = np.flatnonzero(kept < 0)
        spelled = source.spelled(open_)
        wanted = [source.tokens[id] for id in open_.tolist()]
        known = lowest_ids(source.source)
        lists = {
            "input": _ending(known, wanted, spelled),
            "output": _beginning(known, wanted, spelled),
        }
        found = int((np.diff(lists["input"][0]) > 0).sum())
        report = TransplantReport(
            copied=int(((source.exact >= 0) & (kept >= 0)).sum()),
            averaged=found,
            by_role=int((source.by_role >= 0).sum()),
            mean=len(open_) - found,
        )
        made = assembled(
            source, lambda side, rows: averages(rows, lists[side], weights), kept, untie=self.untie
        )
        return made, report

    def _pools(self, source: Source) -> bool:
        """Whether tokens that both vocabularies have are pooled with others."""
        if self.exact != "auto":
            return self.exact == "pool"
        lengths = source.target.bytes.lengths
        return bool((lengths[lengths > 0] == 1).all())

    def _weights(self, source: Source) -> np.ndarray | None:
        """How often each source token occurs in the texts, plus one; float64 [Vs]."""
        if not self.by_count:
            return None
        if not source.texts:
            raise ConfigError("initial.suffix.by_count counts tokens in texts; none were given")
        texts = [text for row in source.texts for text in _contents(row)]
        ids = [id for row in source.source.encode_batch(texts) for id in row]
        return 1.0 + np.bincount(ids, minlength=source.source.vocab_size)


def _contents(row: str | Mapping[str, Any]) -> list[str]:
    """A text, or the contents of a row's messages."""
    if isinstance(row, str):
        return [row]
    return [message.content for message in parse_row(row).messages if message.content]


def _beginning(known: dict[bytes, int], wanted: Sequence[bytes], spelled: Ragged) -> Ragged:
    """The known tokens that begin with each wanted string; else the first of its spelling."""
    ordered = sorted(known)
    ids = np.array([known[data] for data in ordered], np.int64)
    low = np.array([bisect_left(ordered, data) for data in wanted], np.int64)
    high = np.array([_past(ordered, data) for data in wanted], np.int64)
    return _runs(ids, low, high, spelled, first=True)


def _ending(known: dict[bytes, int], wanted: Sequence[bytes], spelled: Ragged) -> Ragged:
    """The known tokens that end with each wanted string; else the last of its spelling."""
    ordered = sorted((data[::-1], id) for data, id in known.items())
    backwards = [data for data, _ in ordered]
    ids = np.array([id for _, id in ordered], np.int64)
    low = np.array([bisect_left(backwards, data[::-1]) for data in wanted], np.int64)
    high = np.array([_past(backwards, data[::-1]) for data in wanted], np.int64)
    return _runs(ids, low, high, spelled, first=False)


def _past(ordered: Sequence[bytes], data: bytes) -> int:
    """The first place after all sorted strings that begin with `data`; 0 for an empty one."""
    stem = data.rstrip(b"\xff")
    if not stem:
        return len(ordered) if data else 0
    return bisect_left(ordered, stem[:-1] + bytes([stem[-1] + 1]))


def _runs(
    ids: np.ndarray, low: np.ndarray, high: np.ndarray, spelled: Ragged, *, first: bool
) -> Ragged:
    """The ids in each run of places; where a run is empty, one end of the spelling."""
    offsets, tokens = spelled
    empty = (high <= low) & (np.diff(offsets) > 0)
    ends = offsets[:-1] if first else offsets[1:] - 1
    sizes = np.where(empty, 1, np.maximum(high - low, 0))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
    found = np.empty(starts[-1], np.int64)
    single = np.repeat(empty, sizes)
    found[single] = tokens[ends[empty]]
    found[~single] = ids[(np.repeat(low, sizes) + within)[~single]]
    return starts, found
