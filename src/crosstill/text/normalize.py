"""How a tokenizer rewrites text before it cuts it, and which bytes came from which.

Most texts pass through unchanged and the rest of this module is never reached: `changes` is asked
first and costs next to nothing. Where a normaliser composed accents, folded case, dropped
whitespace or the like, `pieces` maps the bytes of the text to the bytes its tokens spell, so that
token edges of two tokenizers can still be compared.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crosstill.errors import DataError, TokenizerError
from crosstill.text import edges
from crosstill.text.charsets import normalizer_of
from crosstill.text.spec import TokenizerSpec
from crosstill.text.steps import (
    WHITESPACE,
    Clusters,
    LiteralBytes,
    Removal,
    Replacement,
    Step,
    Strip,
    WordsMarked,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BY_CHARACTER = {"Lowercase", "Nmt"}
_BY_CLUSTER = {"NFC", "NFD", "NFKC", "NFKD", "StripAccents", "BertNormalizer", "Precompiled"}
_PLAIN_PATTERN = re.compile(r"(?:[^\\\[(&]|\\[nrt.*+?(){}|\[\]\\]|\[[^\\\[&]*\])*")
_SPACE_DROPPERS = {"WhitespaceSplit", "Whitespace", "BertPreTokenizer"}


@dataclass(frozen=True)
class _Lead:
    """What is put before a text: `text`, unless it begins with one of `unless`."""

    text: str = ""
    unless: str = ""
    everywhere: bool = False  # before every stretch between added tokens, not only the first

    def before(self, segment: str, first: bool) -> str:
        if not segment or segment[0] in self.unless or not (first or self.everywhere):
            return ""
        return self.text


class Normalization:
    """How one tokenizer rewrites text before it cuts it.

    The bytes of a text's tokens are `prefix_of(text) + spelled(text)`.

    Attributes:
        prefix: What the tokenizer puts before ordinary text by itself, `b""` or `b" "`. Some put
            nothing before a text that begins with a space already: `prefix_of` knows.
        rules: Names of the normalisers at work, for messages.
    """

    def __init__(self, spec: TokenizerSpec, *, literal_bytes: bool = False):
        """Reads the rewriting from the parts of a tokenizer.

        Args:
            spec: The tokenizer's parts.
            literal_bytes: Whether its model takes the text `<0x41>` for the byte 0x41.

        Raises:
            TokenizerError: A normaliser of an unknown kind.
        """
        self.rules = tuple(part["type"] for part in spec.normalizers)
        self._mark = spec.mark
        self._before = _normalizer_steps(spec)
        self._after, self._lead = _pre_tokenizer_steps(spec)
        if literal_bytes:
            self._after = (*self._after, LiteralBytes())
        prepended = "".join(p["prepend"] for p in spec.normalizers if p["type"] == "Prepend")
        self._prepend = _Lead(prepended, everywhere=True)
        content = spec.content().values()
        self._raw_tokens = _cutter([t.content for t in content if not t.normalized])
        self._normal_tokens = _cutter(
            [self._pattern(t.content) for t in content if t.normalized and t.content]
        )
        self._by_segment = bool(self._prepend.text or self._lead.everywhere) or any(
            isinstance(step, Strip | WordsMarked) for step in (*self._before, *self._after)
        )
        self.prefix = self.prefix_of("a")

    def prefix_of(self, text: str) -> bytes:
        """What the tokenizer puts before this text by itself: `b""` or, mostly, `b" "`."""
        if not text or not (self._lead.text or self._prepend.text):
            return b""
        if not self._doubtful(text):
            lead = self._prepend.before(text, True) + self._lead.before(text, True)
        else:
            result, _, lead_size = self._rewrite(text)
            lead = result[:lead_size]
        return _encode(self._read(lead))

    def spelled(self, text: str) -> bytes:
        """The bytes the tokens of `text` spell, without the prefix.

        Raises:
            DataError: The text holds a lone surrogate.
        """
        original = utf8(text)
        if not self._doubtful(text):
            return original
        result, _, lead = self._rewrite(text)
        return _encode(self._read(result[lead:]))

    def changes(self, text: str) -> bool:
        """Whether the tokenizer rewrites this text: `spelled(text) != text.encode()`."""
        return self._doubtful(text) and self.spelled(text) != utf8(text)

    def pieces(self, text: str) -> np.ndarray:
        """Which bytes of the text became which spelled bytes, int64 [P, 4].

        Rows are `(o0, o1, n0, n1)`: bytes `[o0, o1)` of the text became bytes `[n0, n1)` of what is
        spelled (without the prefix). They are in order, tile both, and are as small as is known;
        neighbours that stayed unchanged are one row. Deleted and inserted bytes are rows with an
        empty image or an empty origin.

        Raises:
            DataError: The text holds a lone surrogate.
        """
        original = utf8(text)
        if not self._doubtful(text):
            return edges.byte_pieces(original, original, _ends(original, original))
        result, map_, lead = self._rewrite(text, mapped=True)
        written = self._read(result[lead:])
        spelled = _encode(written)
        if spelled == original:
            return edges.byte_pieces(original, original, _ends(original, original))
        old, new = (edges.identity(len(text)) if map_ is None else map_).T
        new = np.maximum(new - lead, 0)  # the lead is no part of the text
        corners = [edges.byte_starts(text)[old], edges.byte_starts(written)[new]]
        return edges.byte_pieces(original, spelled, np.stack(corners, axis=1))

    def token_text(self, content: str, normalized: bool) -> bytes:
        """What an added token with this content spells."""
        return _encode(self._read(self._pattern(content) if normalized else content))

    def _doubtful(self, text: str) -> bool:
        """Whether the text might be rewritten; False is certain."""
        if self._mark is not None and self._mark in text:
            return True
        for step in self._before:
            if step.may_change(text):
                return True
        for step in self._after:
            if step.may_change(text):
                return True
        return self._by_segment and self._has_added_token(text)

    def _has_added_token(self, text: str) -> bool:
        cutters = (self._raw_tokens, self._normal_tokens)
        return any(cutter is not None and cutter.search(text) for cutter in cutters)

    def _read(self, result: str) -> str:
        """A rewritten text with its marks read as spaces."""
        return result if self._mark is None else result.replace(self._mark, " ")

    def _pattern(self, content: str) -> str:
        """How an added token that is matched in normalised text is written there."""
        text = content
        for step in self._before:
            text = step.apply(text)
        return self._prepend.before(text, True) + text

    def _rewrite(self, text: str, mapped: bool = False) -> tuple[str, np.ndarray | None, int]:
        """The rewritten text with the lead; the edge map if asked for; the lead's length."""
        utf8(text)
        results, maps, lengths, lead = [], [], [], 0
        by_segment = self._by_segment or self._before or self._after
        for start, segment, is_token in _segments(self._raw_tokens if by_segment else None, text):
            result, map_ = segment, None
            if not is_token:
                result, map_, size = self._rewrite_segment(segment, start == 0, mapped)
                lead += size if start == 0 else 0
            results.append(result)
            maps.append(map_)
            lengths.append(len(segment))
        return "".join(results), edges.joined(maps, lengths), lead

    def _rewrite_segment(
        self, segment: str, first: bool, mapped: bool
    ) -> tuple[str, np.ndarray | None, int]:
        """As `_rewrite`, for a stretch between two added tokens."""
        once = first and self._lead.text != "" and not self._lead.everywhere
        normal, map_ = _run(self._before, segment, mapped or once)
        if once and map_ is not None:
            first = not (map_[1:, 1] == 0).any()  # no lead where the first character is gone
        prepended = self._prepend.before(normal, first)
        results, maps, lengths, lead = [], [], [], len(prepended) if first else 0
        for start, part, is_token in _segments(self._normal_tokens, prepended + normal):
            result, part_map, put = part, None, ""
            if not is_token:
                result, part_map = _run(self._after, part, mapped)
                put = self._lead.before(result, first and start == 0)
                lead += len(put) if first and start == 0 else 0
            results.append(put + result)
            maps.append(edges.led(part_map, len(put), len(part)))
            lengths.append(len(part))
        map_ = edges.led(map_, len(prepended), len(segment))
        return "".join(results), edges.compose(map_, edges.joined(maps, lengths)), lead


def normalization(tokenizer: "PreTrainedTokenizerFast") -> Normalization:
    """How a fast tokenizer rewrites text, once for each tokenizer object.

    Raises:
        TokenizerError: As for `token_bytes`.
    """
    from crosstill.text.parts import tokenizer_parts

    return tokenizer_parts(tokenizer).normalization


def utf8(text: str) -> bytes:
    """The text as UTF-8.

    Raises:
        DataError: It holds a lone surrogate, which no UTF-8 can spell.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        around = text[max(error.start - 10, 0) : error.end + 10]
        raise DataError(
            "expected text that UTF-8 can spell, got a lone surrogate "
            f"U+{ord(text[error.start]):04X} at character {error.start}, in {around!r}: mend the "
            'row (such text mostly comes from JSON escapes like "\\\\ud83d" cut in two), or let '
            "bad rows be skipped."
        ) from None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _ends(old: bytes, new: bytes) -> np.ndarray:
    return edges.whole(len(old), len(new))


def _run(steps: Sequence[Step], text: str, mapped: bool) -> tuple[str, np.ndarray | None]:
    """The text after all steps, and its edge map if asked for and if it changed."""
    map_ = None
    for step in steps:
        if not step.may_change(text):
            continue
        result = step.apply(text)
        if mapped and result != text:
            map_ = edges.compose(map_, step.edges(text, result))
        text = result
    return text, map_


def _cutter(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """Finds added tokens, the longest first where several begin."""
    ordered = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _segments(cutter: re.Pattern[str] | None, text: str) -> Iterator[tuple[int, str, bool]]:
    """Start, text and whether it is an added token, of each stretch of the text."""
    at = 0
    for match in cutter.finditer(text) if cutter else ():
        if match.start() > at:
            yield at, text[at : match.start()], False
        yield match.start(), match[0], True
        at = match.end()
    if at < len(text) or not text:
        yield at, text[at:], False


def _normalizer_steps(spec: TokenizerSpec) -> tuple[Step, ...]:
    """The normalisers as steps; neighbours that work by character or cluster become one."""
    steps: list[Step] = []
    run: list[Mapping[str, Any]] = []
    parts = [p for p in spec.normalizers if p["type"] not in ("Prepend", "ByteLevel")]
    if parts and parts[-1] == _space_to_mark(spec.mark):
        parts.pop()  # what it writes is read as a space again
    for part in [*parts, None]:
        if part is not None and part["type"] in _BY_CHARACTER | _BY_CLUSTER:
            run.append(part)
            continue
        if run:
            joining = any(member["type"] in _BY_CLUSTER for member in run)
            steps.append(Clusters(normalizer_of(_state(run)), joining))
            run = []
        if part is not None:
            steps.append(_OTHER_STEPS.get(part["type"], _unknown_step)(part))
    return tuple(steps)


def _space_to_mark(mark: str | None) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": mark}


def _state(parts: Sequence[Mapping[str, Any]]) -> bytes:
    return ",".join(json.dumps(part) for part in parts).encode()


def _replace_step(part: Mapping[str, Any]) -> Step:
    pattern, literal = part["pattern"].get("Regex"), part["pattern"].get("String")
    find = _plain(pattern) if literal is None else re.compile(re.escape(literal))
    return Replacement(normalizer_of(_state([part])), find, part["content"])


def _plain(pattern: str) -> re.Pattern[str] | None:
    """A tokenizer's regular expression, where Python surely reads it the same way."""
    return re.compile(pattern) if _PLAIN_PATTERN.fullmatch(pattern) else None


def _strip_step(part: Mapping[str, Any]) -> Step:
    return Strip(part["strip_left"], part["strip_right"])


def _unknown_step(part: Mapping[str, Any]) -> Step:
    raise TokenizerError(
        f"expected normalisers of known kinds, got {part['type']}: crosstill cannot tell which "
        "bytes it changes; use another tokenizer."
    )


_OTHER_STEPS: Mapping[str, Callable[[Mapping[str, Any]], Step]] = {
    "Replace": _replace_step,
    "Strip": _strip_step,
}


def _pre_tokenizer_steps(spec: TokenizerSpec) -> tuple[tuple[Step, ...], _Lead]:
    """What pre-tokenizers drop from the text, and what they put before it."""
    steps: list[Step] = []
    lead = _Lead()
    kinds = [part["type"] for part in spec.pre_tokenizers]
    for place, part in enumerate(spec.pre_tokenizers):
        match part["type"]:
            case "Metaspace":
                mark, scheme = part["replacement"], part["prepend_scheme"]
                if kinds[:place][-1:] == ["WhitespaceSplit"] and scheme == "always":
                    steps[-1] = WordsMarked(mark)
                if scheme != "never":
                    lead = _Lead(mark, f" {mark}", everywhere=scheme == "always")
            case "ByteLevel" if part["add_prefix_space"] and place == 0:
                lead = _Lead(" ", " ", everywhere=True)
            case kind if kind in _SPACE_DROPPERS:
                steps.append(Removal(re.compile(f"[{WHITESPACE}]+")))
            case "CharDelimiterSplit":
                steps.append(Removal(re.compile(re.escape(part["delimiter"]))))
            case "Split" if part["behavior"] == "Removed" and not part["invert"]:
                steps.append(_removal(part))
    return tuple(steps), lead


def _removal(part: Mapping[str, Any]) -> Step:
    pattern, literal = part["pattern"].get("Regex"), part["pattern"].get("String")
    find = _plain(pattern) if literal is None else re.compile(re.escape(literal))
    # A pattern of another dialect is taken to remove nothing; the check of the law then decides.
    return Removal(find or re.compile("(?!)"))
