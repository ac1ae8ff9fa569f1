"""The exact bytes of every token of any fast tokenizer.

They are read from the tokenizer's model, its byte alphabet and its added tokens, never by decoding
ids one by one: a decoder joins, strips and replaces what is not valid text by itself.

The law, checked when a table is made: the bytes of the tokens of a text, joined, are the prefix the
tokenizer adds by itself and then the text as its normaliser wrote it. Only a row that holds the
unknown token is exempt.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from crosstill.errors import TokenizerError
from crosstill.text.spec import TokenizerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_IN_UTF8 = [*range(0xC0), *range(0xC2, 0xF5)]  # 0xC0, 0xC1 and 0xF5 up never occur
# Control characters, and the lead bytes of planes that hold no character but private ones.
_RARE = {*range(0x20), 0x7F, 0xF1, 0xF2, 0xF4} - {*b"\t\n\r"}
_BOUNDARY = np.frombuffer(b" \t\n", np.uint8)


@dataclass(frozen=True, eq=False)
class TokenBytes:
    r"""What each token id of one tokenizer spells.

    Attributes:
        lengths: int32 [V], bytes; 0 for special tokens; V is the largest id + 1.
        special: bool [V], control tokens: they spell nothing.
        first_byte: int16 [V], -1 where nothing is spelled.
        unknown_id: A token that can stand for any bytes, if the tokenizer has one.
        kind: "byte-level", "metaspace", "wordpiece", "character", "word", "bpe" or "unigram".
        missing: Rare bytes that no token spells and that the tokenizer drops without a trace
            (SmolLM2: some control characters). `TextEncoder.encode` refuses a text that has one.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> alphabet = byte_alphabet()
        >>> backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        >>> backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        >>> from transformers import PreTrainedTokenizerFast
        >>> table = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))
        >>> table.spell([0xC3, 0xA9, 0x0A]), table.ends([0xC3, 0xA9, 0x0A]).tolist()
        (b'\xc3\xa9\n', [1, 2, 3])
    """

    lengths: np.ndarray
    special: np.ndarray
    first_byte: np.ndarray
    unknown_id: int | None
    kind: str
    missing: bytes
    _starts: np.ndarray = field(repr=False)
    _buffer: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        """V: the largest id + 1."""
        return len(self.lengths)

    def token(self, id: int) -> bytes:
        """The bytes one token spells; empty for special tokens.

        Raises:
            TokenizerError: The id is outside the vocabulary.
        """
        self._check(np.asarray([id]))
        start = int(self._starts[id])
        return self._buffer[start : start + int(self.lengths[id])].tobytes()

    def spell(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes the tokens spell, joined.

        Raises:
            TokenizerError: An id is outside the vocabulary.
        """
        index = self._check(np.asarray(ids, np.int64))
        lengths = self.lengths[index].astype(np.int64)
        ends = np.cumsum(lengths)
        shift = np.repeat(self._starts[index] - (ends - lengths), lengths)
        return self._buffer[shift + np.arange(len(shift))].tobytes()

    def ends(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Byte ends, int64 [T]: how many bytes are spelled up to and with each token.

        Raises:
            TokenizerError: An id is outside the vocabulary.
        """
        return np.cumsum(self.lengths[self._check(np.asarray(ids, np.int64))], dtype=np.int64)

    def boundary(self) -> np.ndarray:
        """Tokens that begin a new word, bool [V]: first byte space, tab or newline, or special.

        Source: the set that debiases chunk probabilities in Approximate Likelihood Matching
        (Minixhofer et al., 2025).
        """
        return np.isin(self.first_byte, _BOUNDARY) | self.special

    def _check(self, ids: np.ndarray) -> np.ndarray:
        if len(ids) and (ids.min() < 0 or ids.max() >= len(self.lengths)):
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise TokenizerError(
                f"expected token ids from 0 to {len(self.lengths) - 1}, got {bad}: padding labels "
                "(-100) and the padded rows of a model's vocabulary spell nothing; leave them out."
            )
        return ids


def token_bytes(tokenizer: "PreTrainedTokenizerFast") -> TokenBytes:
    """The bytes of every id of a fast tokenizer, once for each tokenizer object.

    A tokenizer that gained tokens since is read again.

    Raises:
        TokenizerError: A slow tokenizer, or one whose tokens do not spell the text it was given;
            the message holds the first text where that happens.
    """
    from crosstill.text.parts import tokenizer_parts

    return tokenizer_parts(tokenizer).bytes


def byte_alphabet() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in byte-level vocabularies.

    Printable Latin-1 stands for itself, every other byte for the next code point from U+0100 on.

    Source: the GPT-2 tokenizer (Radford et al., 2019).

    Example:
        >>> byte_alphabet()[ord("a")], byte_alphabet()[ord(" ")]
        ('a', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def build_table(spec: TokenizerSpec, added: dict[int, bytes]) -> TokenBytes:
    """The table of a tokenizer, from its parts.

    Args:
        spec: The tokenizer.
        added: What its added content tokens spell.

    Raises:
        TokenizerError: Some byte of ordinary text has no token and there is no unknown token
            either, so that text would vanish without a trace.
    """
    unknown, missing = _unspelled(spec)
    spelled = dict(zip(spec.vocab.values(), _spellings(spec), strict=True))
    spelled |= added
    spelled |= dict.fromkeys(spec.control, b"")
    size = max([*spelled, *spec.added], default=-1) + 1
    pieces = [b""] * size
    for id, data in spelled.items():
        pieces[id] = data
    lengths = np.fromiter(map(len, pieces), np.int32, size)
    buffer = np.frombuffer(b"".join(pieces) + b"\0", np.uint8)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    special = np.zeros(size, bool)
    special[list(spec.control)] = True
    return TokenBytes(
        lengths=lengths,
        special=special,
        first_byte=np.where(lengths > 0, buffer[starts].astype(np.int16), np.int16(-1)),
        unknown_id=unknown,
        kind=_kind(spec),
        missing=missing,
        _starts=starts,
        _buffer=buffer,
    )


def _spellings(spec: TokenizerSpec) -> Iterable[bytes]:
    """What each entry of the model's vocabulary spells, in its order."""
    tokens: Sequence[str] = list(spec.vocab)
    if spec.continuing_prefix or spec.word_suffix:
        tokens = [_bare(spec, token) for token in tokens]
    if spec.byte_level:
        return _byte_level(tokens)
    return _written(tokens, spec.mark, spec.byte_fallback)


def _byte_level(tokens: Sequence[str]) -> list[bytes]:
    """Every character is one byte; so all are translated at once."""
    alphabet = byte_alphabet()
    table = {ord(char): byte for byte, char in enumerate(alphabet)}
    foreign = "".join(set("".join(tokens)) - set(alphabet))
    # A token with a character outside the alphabet is an added one, stored as it is written.
    find = re.compile(f"[{re.escape(foreign)}]" if foreign else "(?!)")
    raw = {k: token for k, token in enumerate(tokens) if foreign and find.search(token)}
    kept = ["" if k in raw else token for k, token in enumerate(tokens)] if raw else tokens
    joined = "".join(kept).translate(table).encode("latin-1")
    pieces, at = [], 0
    for token in kept:
        pieces.append(joined[at : at + len(token)])
        at += len(token)
    for k, token in raw.items():
        pieces[k] = token.encode()
    return pieces


def _written(tokens: Sequence[str], mark: str | None, byte_fallback: bool) -> list[bytes]:
    """Tokens are text, but for the mark that stands for a space and the `<0xXX>` of a byte."""
    pieces = [(token.replace(mark, " ") if mark else token).encode() for token in tokens]
    for k, token in enumerate(tokens if byte_fallback else ()):
        if len(token) == 6 and (match := _BYTE_TOKEN.fullmatch(token)):
            pieces[k] = bytes.fromhex(match[1])
    return pieces


def _bare(spec: TokenizerSpec, token: str) -> str:
    """A token without the signs of its place in a word; the bare signs spell themselves."""
    if spec.continuing_prefix and token != spec.continuing_prefix:
        token = token.removeprefix(spec.continuing_prefix)
    if spec.word_suffix and token != spec.word_suffix:
        token = token.removesuffix(spec.word_suffix)
    return token


def _unspelled(spec: TokenizerSpec) -> tuple[int | None, bytes]:
    """The token that hides what has no token of its own; else the bytes that are dropped."""
    missing = _missing_bytes(spec)
    if not missing or spec.unknown is not None:
        return (spec.unknown if missing else None), b""
    if _RARE.issuperset(missing):
        return None, bytes(missing)
    ordinary = [byte for byte in missing if byte not in _RARE]
    what = (
        f"bytes {', '.join(f'0x{byte:02X}' for byte in ordinary[:8])}"
        if spec.byte_level or spec.byte_fallback
        else "characters outside its vocabulary"
    )
    raise TokenizerError(
        f"{spec.name}: expected a token for every byte or an unknown token, got no token for "
        f"{what}: such text would vanish without a trace. Train the tokenizer with the full byte "
        "alphabet (initial_alphabet=ByteLevel.alphabet()), or give its model an unk_token."
    )


def _missing_bytes(spec: TokenizerSpec) -> list[int]:
    """The bytes of valid UTF-8 that no single token spells."""
    if spec.byte_level and spec.model == "BPE":
        alphabet = byte_alphabet()
        ends = ("", spec.word_suffix, spec.continuing_prefix)
        names = [{alphabet[b], alphabet[b] + ends[1], ends[2] + alphabet[b]} for b in range(256)]
        return [b for b in _IN_UTF8 if not names[b] <= spec.vocab.keys()]
    if spec.byte_fallback:
        return [b for b in _IN_UTF8 if f"<0x{b:02X}>" not in spec.vocab]
    return _IN_UTF8


def _kind(spec: TokenizerSpec) -> str:
    if spec.byte_level:
        return "byte-level"
    if spec.mark is not None:
        return "metaspace"
    if spec.model != "WordLevel":
        return spec.model.lower()
    text = [token for token, id in spec.vocab.items() if id not in spec.control]
    return "character" if all(len(token) == 1 for token in text) else "word"
