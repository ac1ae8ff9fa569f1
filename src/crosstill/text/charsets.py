"""Which characters a normaliser can touch, asked of the normaliser itself.

Python and the tokenizer may know different versions of Unicode. What a normaliser does to each
character of the two planes in use is therefore asked of it once; characters Python does not know
and the rarer planes count as doubtful, so that the normaliser is asked again when one occurs.
"""

import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType

import numpy as np
from tokenizers import normalizers

_RARE = 0x20000  # from here on, characters are not asked for one by one
_PLANES = [*range(0xD800), *range(0xE000, _RARE)]
_GLUE_TOO = [0x200D, *range(0xFE00, 0xFE10), *range(0x1F3FB, 0x1F400)]
_EXTENDING = {"Mn", "Mc", "Me"}
_MARK, _TOUCHED, _GLUED = 1, 2, 4


@dataclass(frozen=True, eq=False)
class Touched:
    """What a normaliser that works character by character, or cluster by cluster, can change.

    Attributes:
        ascii: Whether it can change ASCII text.
        joining: Whether neighbouring characters matter to it.
    """

    ascii: bool
    joining: bool
    _flags: np.ndarray = field(repr=False)  # uint8 by code point; the last one for all above
    _suspect: np.ndarray = field(init=False, repr=False)  # 1: touched by itself, or a mark

    def __post_init__(self):
        suspect = (self._flags & (_TOUCHED | _MARK) > 0).astype(np.uint8)
        object.__setattr__(self, "_suspect", suspect)

    def doubtful(self, text: str) -> bool:
        """Whether the normaliser might change the text; False is certain."""
        if not self.ascii and text.isascii():
            return False
        codes = _codes(text)
        if not _any_marked(codes, self._suspect):
            return False
        return bool(self._hot(self._flags_of(codes)).any())

    def clusters(self, text: str) -> list[tuple[int, int]]:
        """Every stretch of the text that may change, each independent of the rest."""
        codes = _codes(text)
        flags = self._flags_of(codes)
        glued = flags & _GLUED > 0
        if self.joining:
            glued[1:] |= (codes[1:] == 0x0A) & (codes[:-1] == 0x0D)
        glued[:1] = False
        starts = np.flatnonzero(~glued)
        hot = np.unique(np.cumsum(~glued)[self._hot(flags)] - 1)
        ends = np.append(starts[1:], len(text))
        return list(zip(starts[hot].tolist(), ends[hot].tolist(), strict=True))

    def _flags_of(self, codes: np.ndarray) -> np.ndarray:
        return self._flags[np.minimum(codes, _RARE)]

    def _hot(self, flags: np.ndarray) -> np.ndarray:
        """Characters that may change: by themselves, or as the second of two marks in a row."""
        hot = flags & _TOUCHED > 0
        hot[1:] |= flags[1:] & flags[:-1] & _MARK > 0
        return hot


def touched(normalizer: normalizers.Normalizer, *, joining: bool) -> Touched:
    """What `normalizer` can change; `joining` where neighbours matter (NFC, charsmaps)."""
    return _touched(normalizer.__getstate__(), joining)


@lru_cache(maxsize=32)
def _touched(state: bytes, joining: bool) -> Touched:
    rewrite = normalizer_of(state).normalize_str
    flags = np.zeros(_RARE + 1, np.uint8)
    flags[[code for code in _PLANES if rewrite(chr(code)) != chr(code)]] |= _TOUCHED
    flags[_RARE] |= _TOUCHED
    return Touched(
        bool(flags[:0x80].any()), joining, flags | _joining_flags() if joining else flags
    )


@lru_cache(maxsize=1)
def _joining_flags() -> np.ndarray:
    """Characters that may compose with the one before them, change places with it or extend it."""
    flags = np.zeros(_RARE + 1, np.uint8)
    decompose = normalizers.NFD().normalize_str
    parts = [decompose(chr(code)) for code in _PLANES]
    seconds = sorted({ord(char) for part in parts if len(part) > 1 for char in part[1:]})
    categories = {code: unicodedata.category(chr(code)) for code in _PLANES}
    unknown = [code for code, category in categories.items() if category == "Cn"]
    extending = [code for code, category in categories.items() if category in _EXTENDING]
    flags[[*seconds, *unknown]] |= _TOUCHED
    flags[[code for code in extending if unicodedata.combining(chr(code))]] |= _MARK
    flags[[*seconds, *unknown, *extending, *_GLUE_TOO, _RARE]] |= _GLUED
    return flags


def _codes(text: str) -> np.ndarray:
    # "utf-32" is found at once where "utf-32-le" is looked up; behind its mark it is the same.
    return np.frombuffer(text.encode("utf-32", "surrogatepass"), np.uint32, offset=4)


def _any_marked(codes: np.ndarray, marked: np.ndarray) -> bool:
    """Whether any of the characters is marked; the table's last entry stands for all above."""
    compiled = _compiled()
    if compiled:
        return compiled.any_marked(codes, marked)
    return bool(np.count_nonzero(marked.take(codes, mode="clip")))


@lru_cache(maxsize=1)
def _compiled() -> ModuleType | None:
    try:
        from crosstill.text import charsets_compiled
    except ImportError:  # no numba for this Python version or platform
        return None
    return charsets_compiled


def normalizer_of(state: bytes) -> normalizers.Normalizer:
    """A normaliser from its JSON."""
    normalizer = normalizers.Sequence([])
    normalizer.__setstate__(b'{"type":"Sequence","normalizers":[' + state + b"]}")
    return normalizer
