"""The steps by which tokenizers rewrite text before they cut it, each with its edge map.

A step says cheaply whether it may change a text, does what the tokenizer does to it, and tells
which places of the text correspond to which places of the result. The tokenizer's own normalisers
do the work; only the edge map is found here, and it is checked: cut at its edges and rewritten
piece by piece, the text must come out as when rewritten whole. Otherwise the step is opaque there.
"""

import re
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tokenizers import normalizers

from crosstill.text import edges
from crosstill.text.charsets import Touched, touched

WHITESPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""The characters with Unicode's White_Space property; Python's `str.isspace` holds four more."""

_SPACES = re.compile(f"[{WHITESPACE}]+")
_UNUSUAL_SPACES = re.compile(f"[{WHITESPACE}]{{2}}|[{WHITESPACE.replace(' ', '')}]|^ | $")
_WORDS = re.compile(r"\s+|\S+")
_LITERAL_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Step(Protocol):
    """One rewriting of a text (a stretch between two added tokens)."""

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        ...

    def apply(self, text: str) -> str:
        """The text after the step."""
        ...

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`, which is `apply(text)`."""
        ...


@dataclass
class Clusters:
    """A normaliser that works character by character or cluster by cluster: NFC, Lowercase ..."""

    normalizer: normalizers.Normalizer
    joining: bool
    _images: dict[str, str] = field(default_factory=dict, repr=False)
    _touched: Touched | None = field(default=None, repr=False)

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return self._reach().doubtful(text)

    def apply(self, text: str) -> str:
        """The text after the step."""
        return self.normalizer.normalize_str(text)

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        for spans in (self._reach().clusters(text), _spans(_WORDS, text)):
            images = [self._image(text[start:end]) for start, end in spans]
            if _substitute(text, spans, images) == result:
                changed = [k for k, (a, b) in enumerate(spans) if images[k] != text[a:b]]
                return edges.substituted(
                    len(text), [spans[k] for k in changed], [len(images[k]) for k in changed]
                )
        return edges.whole(len(text), len(result))

    def _reach(self) -> Touched:
        if self._touched is None:
            self._touched = touched(self.normalizer, joining=self.joining)
        return self._touched

    def _image(self, cluster: str) -> str:
        if len(self._images) > 100_000:
            self._images.clear()
        image = self._images.get(cluster)
        if image is None:
            image = self._images[cluster] = self.normalizer.normalize_str(cluster)
        return image


@dataclass
class Replacement:
    """A Replace normaliser.

    `find` is `None` where the tokenizer's pattern may mean something else to Python: then the
    tokenizer is asked each time, and its changes are opaque.
    """

    normalizer: normalizers.Normalizer
    find: re.Pattern[str] | None
    image: str

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return self.find is None or self.find.search(text) is not None

    def apply(self, text: str) -> str:
        """The text after the step."""
        return self.normalizer.normalize_str(text)

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        spans = [] if self.find is None else _spans(self.find, text)
        if _substitute(text, spans, [self.image] * len(spans)) != result:
            return edges.whole(len(text), len(result))
        return edges.substituted(len(text), spans, [len(self.image)] * len(spans))


@dataclass
class Removal:
    """A pre-tokenizer that drops what it finds: whitespace (BERT), a delimiter."""

    find: re.Pattern[str]

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return self.find.search(text) is not None

    def apply(self, text: str) -> str:
        """The text after the step."""
        return self.find.sub("", text)

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        spans = _spans(self.find, text)
        return edges.substituted(len(text), spans, [0] * len(spans))


@dataclass
class Strip:
    """Whitespace taken from the ends."""

    left: bool
    right: bool

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return self.apply(text) != text

    def apply(self, text: str) -> str:
        """The text after the step."""
        text = text.lstrip(WHITESPACE) if self.left else text
        return text.rstrip(WHITESPACE) if self.right else text

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        start = len(text) - len(text.lstrip(WHITESPACE)) if self.left else 0
        spans = [(0, start), (start + len(result), len(text))]
        spans = [(a, b) for a, b in spans if a < b]
        return edges.substituted(len(text), spans, [0] * len(spans))


@dataclass
class WordsMarked:
    """Words cut at whitespace, each with one mark before it: T5, XLM-R. Runs become one mark.

    The first word's mark is the image of the whitespace before it, if there is any.
    """

    mark: str

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return _UNUSUAL_SPACES.search(text) is not None or self.mark in text

    def apply(self, text: str) -> str:
        """The text after the step."""
        spans, images = self._images(text)
        return _substitute(text, spans, images)

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        spans, images = self._images(text)
        return edges.substituted(len(text), spans, [len(image) for image in images])

    def _images(self, text: str) -> tuple[list[tuple[int, int]], list[str]]:
        run = re.compile(f"[{WHITESPACE}]+{self.mark}?")
        spans = [match.span() for match in run.finditer(text)]
        images = [self.mark] * len(spans)
        if spans and spans[-1][1] == len(text) and text[-1] != self.mark:
            images[-1] = ""
        return spans, images


@dataclass
class LiteralBytes:
    """Text that reads `<0x41>`: Unigram models with byte fallback take it for the byte itself."""

    def may_change(self, text: str) -> bool:
        """Whether the step might change the text; False is certain."""
        return _LITERAL_BYTE.search(text) is not None

    def apply(self, text: str) -> str:
        """The text after the step."""
        return _LITERAL_BYTE.sub(lambda match: _raw_byte(int(match[1], 16)), text)

    def edges(self, text: str, result: str) -> np.ndarray:
        """The edge map from `text` to `result`."""
        spans = [match.span() for match in _LITERAL_BYTE.finditer(text)]
        return edges.substituted(len(text), spans, [1] * len(spans))


def _raw_byte(byte: int) -> str:
    """A byte as a character that encodes to it with "surrogateescape"."""
    return chr(byte if byte < 0x80 else 0xDC00 + byte)


def _spans(find: re.Pattern[str], text: str) -> list[tuple[int, int]]:
    """Where the pattern finds something that is not empty."""
    return [match.span() for match in find.finditer(text) if match[0]]


def _substitute(text: str, spans: list[tuple[int, int]], images: list[str]) -> str:
    """The text with each span replaced by its image."""
    parts, at = [], 0
    for (start, end), image in zip(spans, images, strict=True):
        parts += [text[at:start], image]
        at = end
    return "".join([*parts, text[at:]])
