"""Every token of one tokenizer spelled with the tokens of another.

A spelling is what the other tokenizer really writes for the token's text where it continues a text,
checked to the byte. Tokens that are no text by themselves (pieces of characters) and tokens that
the other tokenizer would rewrite are spelled by the longest tokens that fit, from the left.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from crosstill.errors import DataError
from crosstill.text.bytes import TokenBytes
from crosstill.text.encode import TextEncoder

_ANCHORS = ("\n", '"', "(", ".", "a")
"""What to put before a text so that a tokenizer does not take its beginning for a word's."""

_WORD = "a"

Ragged = tuple[np.ndarray, np.ndarray]
"""Offsets int64 [V+1] and ids int64: row v is `ids[offsets[v] : offsets[v + 1]]`."""


def pieces(table: TokenBytes) -> list[bytes]:
    """The bytes of every id, in order; empty for special tokens."""
    joined = table.spell(np.arange(len(table)))
    ends = np.cumsum(table.lengths, dtype=np.int64).tolist()
    return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def lowest_ids(encoder: TextEncoder) -> dict[bytes, int]:
    """The one id that stands for each byte string of a vocabulary.

    The lowest, but a byte-fallback token (`<0x41>`) only where no other token spells the same: the
    tokenizer itself never writes it then.
    """
    spelled, fallback = pieces(encoder.bytes), fallback_ids(encoder)
    behind = set(fallback)
    ids = {spelled[id]: id for id in fallback}
    ids |= {
        data: id for id, data in reversed(list(enumerate(spelled))) if data and id not in behind
    }
    return ids


def fallback_ids(encoder: TextEncoder) -> list[int]:
    """The byte-fallback tokens of a vocabulary (`<0x41>`), from high ids to low ones."""
    ids = np.flatnonzero(encoder.bytes.lengths == 1)[::-1].tolist()
    names = encoder.tokenizer.convert_ids_to_tokens(ids)
    return [id for id, name in zip(ids, names, strict=True) if name.startswith("<0x")]


def unwritten_ids(encoder: TextEncoder) -> list[int]:
    """The byte-fallback tokens that the tokenizer never writes: another token spells the same."""
    spelled, ids = pieces(encoder.bytes), lowest_ids(encoder)
    return sorted(id for id in fallback_ids(encoder) if ids[spelled[id]] != id)


def spell_tokens(
    source: TextEncoder, target: TextEncoder, specials: Mapping[int, int] | None = None
) -> Ragged:
    """Spell every token of `source` with tokens of `target`.

    The spelled bytes are the token's bytes, always; a row is empty where that cannot be.

    Args:
        source: Whose tokens are spelled.
        target: Whose tokens spell them.
        specials: For special tokens of the source the target's, by role; others stay empty.

    Returns:
        Offsets int64 [V+1] and ids int64, V the ids of the source.
    """
    tokens = pieces(source.bytes)
    rows: list[Sequence[int]] = [()] * len(tokens)
    dropped = set(target.bytes.missing)
    texts = {
        id: text
        for id, data in enumerate(tokens)
        if dropped.isdisjoint(data) and (text := _text(data))
    }
    for id, row in zip(texts, _continuations(target, list(texts.values())), strict=True):
        rows[id] = row
    greedy = _Greedy(target)
    for id, data in enumerate(tokens):
        if data and not rows[id]:
            rows[id] = greedy.spell(data)
    for id, other in (specials or {}).items():
        rows[id] = (other,)
    return _ragged(rows)


def spell_before_word(source: TextEncoder, target: TextEncoder, spelled: Ragged) -> Ragged:
    """Spell tokens that end in white space as `target` does where a word comes behind them.

    Many tokenizers keep the last of several line breaks or spaces apart there, or for the word: two
    line breaks are one token by themselves and two tokens before a word.

    Args:
        source: Whose tokens are spelled.
        target: Whose tokens spell them.
        spelled: How they do by themselves, from `spell_tokens`.

    Returns:
        As `spell_tokens`; a row is empty where that is no other spelling, or a single token, or the
        word has a part of the white space, or `source` does not write the token there either.
    """
    offsets, ids = spelled
    texts = {id: text for id, data in enumerate(pieces(source.bytes)) if (text := _ends_word(data))}
    own, found = (
        [_before_word(side, row) for row in _continuations(side, list(texts.values()))]
        for side in (source, target)
    )
    rows: list[Sequence[int]] = [()] * (len(offsets) - 1)
    for id, whole, row in zip(texts, own, found, strict=True):
        if whole == [id] and len(row) > 1 and row != ids[offsets[id] : offsets[id + 1]].tolist():
            rows[id] = row
    return _ragged(rows)


def _ends_word(data: bytes) -> str:
    """A token that ends in white space, and a word behind it; empty for other tokens."""
    text = _text(data)
    return text + _WORD if text[-1:].isspace() else ""


def _before_word(encoder: TextEncoder, row: Sequence[int]) -> list[int]:
    """What stands before the word; nothing where the word is no token by itself."""
    apart = len(row) > 1 and encoder.bytes.token(int(row[-1])) == _WORD.encode()
    return list(row[:-1]) if apart else []


def _text(data: bytes) -> str:
    """The token as text; empty where it is none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


def _continuations(encoder: TextEncoder, texts: list[str]) -> list[Sequence[int]]:
    """The ids of each text where it continues another; empty where they do not spell it."""
    rows: list[Sequence[int]] = [()] * len(texts)
    for anchor in _ANCHORS if encoder.normalization.prefix else ("",):
        open_ = [k for k, row in enumerate(rows) if not row]
        if not open_:
            break
        encoded = _encode_all(encoder, [anchor + texts[k] for k in open_])
        expected = [texts[k].encode() for k in open_]
        for k, row in zip(open_, _tails(encoder.bytes, encoded, expected), strict=True):
            rows[k] = row
    return rows


def _encode_all(encoder: TextEncoder, texts: list[str]) -> list[list[int]]:
    """As `encode_batch`, with an empty row for a text that the tokenizer refuses."""
    try:
        return encoder.encode_batch(texts)
    except DataError:
        pass
    half = len(texts) // 2
    if not half:
        return [[]]
    return [*_encode_all(encoder, texts[:half]), *_encode_all(encoder, texts[half:])]


def _tails(
    table: TokenBytes, rows: list[list[int]], expected: Iterable[bytes]
) -> Iterable[Sequence[int]]:
    """The last tokens of each row that spell what is expected; empty where an edge is amiss."""
    flat = np.fromiter((id for row in rows for id in row), np.int64)
    joined = table.spell(flat)
    ends = np.concatenate([[0], table.ends(flat)])
    control = np.concatenate([[0], np.cumsum(table.special[flat])])
    at = 0
    for row, data in zip(rows, expected, strict=True):
        start, at = at, at + len(row)
        edge = int(ends[at]) - len(data)
        first = start + int(np.searchsorted(ends[start : at + 1], edge, side="right")) - 1
        whole = first >= start and ends[first] == edge and control[at] == control[first]
        yield row[first - start :] if whole and joined[edge : ends[at]] == data else ()


class _Greedy:
    """Spells bytes by the longest tokens that fit, from the left."""

    def __init__(self, encoder: TextEncoder):
        self._ids = lowest_ids(encoder)
        self._longest = max(map(len, self._ids), default=0)

    def spell(self, data: bytes) -> Sequence[int]:
        """Empty where no token begins with what is left."""
        ids, at = [], 0
        while at < len(data):
            ends = range(min(at + self._longest, len(data)), at, -1)
            end = next((end for end in ends if data[at:end] in self._ids), at)
            if end == at:
                return ()
            ids.append(self._ids[data[at:end]])
            at = end
        return ids


def _ragged(rows: list[Sequence[int]]) -> Ragged:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return offsets, np.fromiter((id for row in rows for id in row), np.int64, int(offsets[-1]))
