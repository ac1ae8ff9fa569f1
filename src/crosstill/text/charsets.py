"""Which characters a normaliser can touch, asked of the normaliser itself.

Python and the tokenizer may know different versions of Unicode. What a normaliser does to each
character of the two planes in use is therefore asked of it once; characters Python does not know
and the rarer planes count as doubtful, so that the normaliser is asked again when one occurs.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from tokenizers import normalizers

_PLANES = [*range(0xD800), *range(0xE000, 0x20000)]
_RARE = (0x20000, 0x10FFFF)
_GLUE = {0x200D, *range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400)}
_EXTENDING = {"Mn", "Mc", "Me"}
_MARK, _TOUCHED = 1, 2


@dataclass(frozen=True, eq=False)
class Touched:
    """What a normaliser that works character by character, or cluster by cluster, can change.

    Attributes:
        clusters: Finds every stretch of a text that may change, each independent of the rest.
        ascii: Whether it can change ASCII text.
    """

    clusters: re.Pattern[str]
    ascii: bool
    _flags: np.ndarray = field(repr=False)  # uint8 by code point; the last one for all above

    def doubtful(self, text: str) -> bool:
        """Whether the normaliser might change the text; False is certain."""
        if not self.ascii and text.isascii():
            return False
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)
        flags = self._flags.take(codes, mode="clip")
        if not len(flags) or flags.max() == 0:
            return False
        if flags.max() >= _TOUCHED:
            return True
        return bool((flags[1:] & flags[:-1]).any())  # two marks in a row may change places


def touched(normalizer: normalizers.Normalizer, *, joining: bool) -> Touched:
    """What `normalizer` can change; `joining` where neighbours matter (NFC, charsmaps)."""
    return _touched(normalizer.__getstate__(), joining)


@lru_cache(maxsize=32)
def _touched(state: bytes, joining: bool) -> Touched:
    normalizer = normalizer_of(state)
    changed = {code for code in _PLANES if normalizer.normalize_str(chr(code)) != chr(code)}
    second, marks = (_second_places(), _marks()) if joining else (frozenset(), frozenset())
    unknown = _unknown() if joining else frozenset()
    flags = np.zeros(0x20001, np.uint8)
    flags[[code for code in marks if unicodedata.combining(chr(code))]] = _MARK
    flags[[*changed, *second, *unknown, 0x20000]] = _TOUCHED
    own = char_class(changed, _RARE)
    if joining:
        glue = char_class(second | marks | unknown | _GLUE, (0xE0100, 0xE01EF))
        own = f"[^{glue[1:]}?{glue}+|{own}|\r\n"
    return Touched(re.compile(own), bool(flags[:0x80].any()), flags)


def normalizer_of(state: bytes) -> normalizers.Normalizer:
    """A normaliser from its JSON."""
    normalizer = normalizers.Sequence([])
    normalizer.__setstate__(b'{"type":"Sequence","normalizers":[' + state + b"]}")
    return normalizer


def char_class(codes: Iterable[int], *ranges: tuple[int, int]) -> str:
    r"""A regular expression for one character among `codes` and the closed `ranges`.

    Example:
        >>> char_class([97, 98, 99, 120])
        '[\\U00000061-\\U00000063\\U00000078-\\U00000078]'
    """
    runs: list[list[int]] = []
    for code in sorted(codes):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    body = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in [*runs, *ranges])
    return f"[{body}]" if body else "(?!)"


@lru_cache(maxsize=1)
def _second_places() -> frozenset[int]:
    """Characters that may compose with, or move before, the one in front of them."""
    decompose = normalizers.NFD().normalize_str
    found = (decompose(chr(code)) for code in _PLANES)
    return frozenset(ord(char) for parts in found if len(parts) > 1 for char in parts[1:])


@lru_cache(maxsize=1)
def _marks() -> frozenset[int]:
    """Combining and extending characters."""
    return frozenset(code for code in _PLANES if unicodedata.category(chr(code)) in _EXTENDING)


@lru_cache(maxsize=1)
def _unknown() -> frozenset[int]:
    """Characters that this Python's Unicode does not know."""
    return frozenset(code for code in _PLANES if unicodedata.category(chr(code)) == "Cn")
