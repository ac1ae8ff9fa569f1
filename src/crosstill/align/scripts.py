"""The script and the category of a character, for telling where an alignment is coarse."""

import unicodedata
from functools import lru_cache

CATEGORIES = ("letters", "digits", "punctuation", "whitespace", "code", "emoji", "other")
"""What `category_of` returns."""

_FIRST_WORDS = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "KANGXI": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
}
_WIDTHS = ("FULLWIDTH ", "HALFWIDTH ")
_NO_SCRIPT = frozenset(
    {"MODIFIER", "COMBINING", "FEMININE", "MASCULINE", "MATHEMATICAL", "VARIATION"}
)
_CODE = frozenset("{}[]<>=+*/\\|&^%$#@~`_")
_JOINERS = frozenset("\u200d\ufe0f\u20e3")


@lru_cache(maxsize=1 << 16)
def script_of(char: str) -> str:
    """The script of a letter or mark: `Latin`, `Han`, `Kana`, `Hangul`, ...; else `Common`.

    Read from the character's Unicode name, which begins with its script.

    Example:
        >>> [script_of(c) for c in "aж漢かไ5"]
        ['Latin', 'Cyrillic', 'Han', 'Kana', 'Thai', 'Common']
    """
    if unicodedata.category(char)[0] not in "LM":
        return "Common"
    name = unicodedata.name(char, "COMBINING")
    for width in _WIDTHS:
        name = name.removeprefix(width)
    first = name.split()[0]
    return "Common" if first in _NO_SCRIPT else _FIRST_WORDS.get(first, first.capitalize())


@lru_cache(maxsize=1 << 16)
def category_of(char: str) -> str:
    """One of `CATEGORIES`; `code` are the ASCII signs that programs use more than prose does.

    Example:
        >>> [category_of(c) for c in "a7,{😀"] + [category_of(" ")]
        ['letters', 'digits', 'punctuation', 'code', 'emoji', 'whitespace']
    """
    if char in _CODE:
        return "code"
    if char in _JOINERS or _is_emoji(ord(char)):
        return "emoji"
    if char.isspace():
        return "whitespace"
    kind = unicodedata.category(char)[0]
    return {
        "L": "letters",
        "M": "letters",
        "N": "digits",
        "P": "punctuation",
        "S": "punctuation",
    }.get(kind, "other")


def _is_emoji(code: int) -> bool:
    return 0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or 0xE0020 <= code <= 0xE007F
