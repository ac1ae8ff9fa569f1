"""Every tokenizer family, with and without each normaliser, by name."""

from collections.abc import Callable
from functools import cache

from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerFast

import tiny_tokenizers as tiny

NORMALIZERS: dict[str, Callable[[], normalizers.Normalizer | None]] = {
    "none": lambda: None,
    "nfc": normalizers.NFC,
    "nfd": normalizers.NFD,
    "nfkc": normalizers.NFKC,
    "nfkd": normalizers.NFKD,
    "lowercase": normalizers.Lowercase,
    "nfd, no accents": lambda: normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents()]
    ),
    "no accents": normalizers.StripAccents,
    "bert": lambda: normalizers.BertNormalizer(lowercase=True),
    "strip": normalizers.Strip,
    "nmt": normalizers.Nmt,
    "quotes": lambda: normalizers.Sequence(
        [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    ),
    "runs of spaces": lambda: normalizers.Replace(Regex(" {2,}"), " "),
    "another dialect": lambda: normalizers.Replace(Regex(r"[[:space:]]+"), " "),
    "albert": lambda: normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Strip(left=False, right=True),
        ]
    ),
}

_RUNS = ("\n\n", "\t", "\u2581\u2581", "\u2581\u2581\u2581", "</table>")
FAMILIES: dict[str, Callable[..., PreTrainedTokenizerFast]] = {
    "byte-level": tiny.byte_level_bpe,
    "byte-level, prefix space": lambda **k: tiny.byte_level_bpe(add_prefix_space=True, **k),
    "byte-level, whole words": lambda **k: tiny.byte_level_bpe(ignore_merges=True, **k),
    "bytes": tiny.bytes_only,
    "characters": tiny.characters,
    "metaspace, first": tiny.metaspace_bpe_with_byte_fallback,
    "metaspace, always": lambda **k: tiny.metaspace_bpe_with_byte_fallback(
        prepend_scheme="always", content_tokens=_RUNS, **k
    ),
    "metaspace, never": lambda **k: tiny.metaspace_bpe_with_byte_fallback(
        prepend_scheme="never", content_tokens=_RUNS, **k
    ),
    "unigram": tiny.unigram,
    "unigram, first": lambda **k: tiny.unigram(prepend_scheme="first", **k),
    "unigram, no bytes": lambda **k: tiny.unigram(byte_fallback=False, **k),
    "unigram, words": lambda **k: tiny.unigram(split_whitespace=True, **k),
}
"""Families that take a normaliser."""

FIXED: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gemma": lambda: tiny.metaspace_bpe_with_byte_fallback(style="gemma", content_tokens=_RUNS),
    "llama, legacy": lambda: tiny.metaspace_bpe_with_byte_fallback(style="prepend"),
    "llama, legacy, runs": lambda: tiny.metaspace_bpe_with_byte_fallback(
        style="prepend", content_tokens=_RUNS
    ),
    "wordpiece": tiny.wordpiece,
    "wordpiece, cased": lambda: tiny.wordpiece(lowercase=False),
    "wordpiece, no rules": lambda: tiny.wordpiece(normalizer=normalizers.Sequence([])),
}
"""Families whose normaliser is part of them."""


@cache
def tokenizer_of(family: str, normalizer: str = "none") -> PreTrainedTokenizerFast:
    """A tiny tokenizer by the names of its family and normaliser."""
    if family in FIXED:
        return FIXED[family]()
    return FAMILIES[family](normalizer=NORMALIZERS[normalizer]())


PAIRS = [(family, name) for family in FAMILIES for name in NORMALIZERS] + [
    (family, "none") for family in FIXED
]
"""Every (family, normaliser)."""
