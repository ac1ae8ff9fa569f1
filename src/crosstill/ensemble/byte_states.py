r"""Models of any tokenizers, untouched, that vote on every byte: exact sums over tokenizations.

A model over tokens says how probable it is that a text begins with some bytes `x`: the sum over the
*covers* of `x`, the token sequences whose bytes begin with `x` and whose last token is needed to
reach its end. The next byte's distribution is the ratio of two such sums,

    P(b | x) = P(x b) / P(x),        P(x) = sum over covers c of x of P(c),

and has nothing to do with tokens any more, so models of different families can be mixed as they
are. A cover is a whole part `h`, which spells a prefix of `x`, and one token more that begins with
the rest. All covers with the same `h` are a range of the vocabulary sorted by bytes, so their mass
is a difference of two cumulative sums; a byte more narrows the range.

A token that ends where the text does splits off as a whole part of its own, and only then is the
model asked. Where that part holds less than a share `threshold` of the mass it is dropped before;
the shares are added up. It is kept in mind: where a byte comes that what is left gives less than
`threshold`, the model is asked after all. With threshold 0 the sums are exact. Otherwise the
distributions are those of a model that never uses the dropped tokenizations: over texts that the
model itself writes, the mass that is missing is on average no more than the sum of the shares.

Axes: V tokens, M nodes of the vocabulary's tree.

Source: covers as in Vieira et al. 2024, "From Language Models over Tokens to Language Models over
Characters" (arXiv:2412.03719), and Phan et al. 2024, "Exact Byte-Level Probabilities from Tokenized
Language Models" (arXiv:2410.09303); the pruning before the call, and its bound, are ours.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crosstill.align.prefixes import PrefixTable, prefix_table
from crosstill.errors import DataError
from crosstill.text.encode import TextEncoder

END = 256
"""The symbol for the end of the text, after the bytes 0 to 255."""

_MOST_WOKEN = 64  # calls of the model for one byte that nobody expected

NextToken = Callable[[tuple[int, ...]], np.ndarray]
"""From token ids to the probabilities of the next one, float64 [V]."""


@dataclass(frozen=True, eq=False)
class ByteTree:
    """A vocabulary as a tree of bytes.

    Attributes:
        table: the tree; the tokens of its spellings are bytes.
        ends: ids that end a text.
        longest: bytes of the longest token.
    """

    table: PrefixTable
    ends: np.ndarray
    longest: int


@dataclass(eq=False)
class _Part:
    """Covers with the same whole part.

    Attributes:
        ids: the whole part.
        log_scale: its log-probability.
        sums: cumulative probabilities of the next token in the tree's order, float64 [N + 1].
        end: probability that the text ends here.
        node: of the tree, for the bytes behind the whole part.
    """

    ids: tuple[int, ...]
    log_scale: float
    sums: np.ndarray
    end: float
    node: int = 0


@dataclass(eq=False)
class _Ended:
    """A whole part of which the model was not asked: ids, log of its mass, and bytes behind it."""

    ids: tuple[int, ...]
    log_mass: float
    rest: bytes


class ByteStates:
    """One model's next-byte distribution behind a text that grows byte by byte.

    Attributes:
        dropped: sum of the shares of mass that were dropped, at each byte of what was left.
        calls: times the model was asked.
    """

    def __init__(
        self, next_token: NextToken, tree: ByteTree, opening: Sequence[int], threshold: float = 0.0
    ) -> None:
        """Asks the model once, for what follows the opening, which is taken as it is."""
        self.dropped = 0.0
        self.calls = 0
        self._next_token = next_token
        self._tree = tree
        self._threshold = threshold
        self._parts = [self._asked(tuple(opening), 0.0)]
        self._sleeping: list[_Ended] = []
        self._before = 0.0

    def logprobs(self) -> np.ndarray:
        """Nats of each next byte and of the end, float64 [257]; of sum one."""
        table, masses = self._tree.table, np.zeros(END + 1)
        top = max(part.log_scale for part in self._parts)
        for part in self._parts:
            scale = math.exp(part.log_scale - top)
            below = slice(int(table.child[part.node]), int(table.child[part.node + 1]))
            masses[table.token[below]] += scale * _between(
                part.sums, table.low[below], table.high[below]
            )
            if part.node == 0:
                masses[END] += scale * part.end
        with np.errstate(divide="ignore"):
            return np.log(masses) - np.log(masses.sum())

    def advance(self, byte: int) -> float:
        """Append a byte.

        Returns:
            Its log-probability in nats: that of `logprobs`, or more where dropped tokenizations
            were asked after all.

        Raises:
            DataError: no token of the model goes on so.
        """
        for one in self._sleeping:
            one.rest += bytes([byte])
        fed = [self._fed(part, bytes([byte])) for part in self._parts]
        parts = [part for part, _ in fed if part is not None]
        ended = [one for _, ends in fed for one in ends]
        if self._total(parts, ended) < self._before + _log(self._threshold):
            self._wake(parts, ended)
        total = self._total(parts, ended)
        if total == -math.inf:
            raise DataError(f"a model of the ensemble cannot write the byte 0x{byte:02X} here")
        asleep = len(self._sleeping)
        for one in ended:
            share = math.exp(one.log_mass - total)
            if share > self._threshold:
                parts.append(self._asked(one.ids, one.log_mass))
            else:
                self.dropped += share
                self._sleeping.append(one)
        gained = total - self._before
        left = -sum(math.exp(one.log_mass - total) for one in self._sleeping[asleep:])
        self._parts, self._before = parts, total + math.log1p(left)
        # What is a whole token behind would need more than one more token: it is let go.
        self._sleeping = [one for one in self._sleeping if len(one.rest) <= self._tree.longest]
        return gained

    def _wake(self, parts: list[_Part], ended: list[_Ended]) -> None:
        """Ask after all about dropped parts that may hold a share of what is left; adds to both."""
        queue, self._sleeping = self._sleeping, []
        for _ in range(_MOST_WOKEN):
            if not queue:
                break
            queue.sort(key=lambda one: one.log_mass)
            if queue[-1].log_mass <= self._total(parts, ended) + _log(self._threshold):
                break
            one = queue.pop()
            part, ends = self._fed(self._asked(one.ids, one.log_mass), one.rest)
            if part is not None:
                parts.append(part)
            ended += [end for end in ends if not end.rest]
            queue += [end for end in ends if end.rest]
        self._sleeping = queue

    def _fed(self, part: _Part, data: bytes) -> tuple[_Part | None, list[_Ended]]:
        """Move on by some bytes: what goes on behind them, and the tokens that end in between."""
        table, node, ends = self._tree.table, part.node, []
        for place, byte in enumerate(data, 1):
            node = self._child(node, byte)
            if node < 0:
                return None, ends
            for k in range(int(table.low[node]), int(table.end[node])):
                mass = _log(_between(part.sums, k, k + 1)) + part.log_scale
                if mass > -math.inf:
                    ends.append(_Ended((*part.ids, int(table.order[k])), mass, data[place:]))
        moved = _Part(part.ids, part.log_scale, part.sums, part.end, node)
        return (moved if self._log_mass(moved) > -math.inf else None), ends

    def _log_mass(self, part: _Part) -> float:
        """Of the covers that go on behind the text."""
        table, node = self._tree.table, part.node
        inside = _between(part.sums, int(table.end[node]), int(table.high[node]))
        return _log(inside) + part.log_scale

    def _total(self, parts: Sequence[_Part], ended: Sequence[_Ended]) -> float:
        """Log of the mass of all covers."""
        masses = [self._log_mass(part) for part in parts] + [one.log_mass for one in ended]
        top = max(masses, default=-math.inf)
        if top == -math.inf:
            return top
        return top + math.log(sum(math.exp(mass - top) for mass in masses))

    def _asked(self, ids: tuple[int, ...], log_scale: float) -> _Part:
        self.calls += 1
        found = self._next_token(ids)
        sums = np.concatenate([[0.0], np.cumsum(found[self._tree.table.order])])
        return _Part(ids, log_scale, sums, float(found[self._tree.ends].sum()))

    def _child(self, node: int, byte: int) -> int:
        """The node that a byte leads to; -1 where no token goes on so."""
        table = self._tree.table
        first, last = int(table.child[node]), int(table.child[node + 1])
        place = first + int(np.searchsorted(table.token[first:last], byte))
        return place if place < last and table.token[place] == byte else -1


def byte_tree(encoder: TextEncoder, rows: int | None = None) -> ByteTree:
    """Sort the tokens of a vocabulary by their bytes.

    Args:
        encoder: the tokenizer.
        rows: ids that the model has; None: all.
    """
    lengths = encoder.bytes.lengths[:rows]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    data = encoder.bytes.spell(np.arange(len(lengths)))
    table = prefix_table((offsets, np.frombuffer(data, np.uint8).astype(np.int64)))
    ends = dict.fromkeys((*encoder.roles.eot_ids, *encoder.roles.eos_ids))
    known = np.array([id for id in ends if id < len(lengths)], np.int64)
    return ByteTree(table, known, int(lengths.max(initial=0)))


def _between(sums: np.ndarray, low: Any, high: Any) -> Any:
    """Differences of cumulative sums; rounding leaves nothing below zero."""
    return np.maximum(sums[high] - sums[low], 0.0)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
