"""Rewriting: what is reported, and which bytes are said to come from which."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerFast

import tiny_tokenizers as tiny
from crosstill.text import charsets
from crosstill.text.charsets import touched
from crosstill.text.edges import compose, identity, substituted
from crosstill.text.encode import text_encoder
from crosstill.text.normalize import Normalization, normalization
from odd_text import odd_texts


def pairs_of(rules: Normalization, text: str) -> list[tuple[str, str]]:
    """Changed pieces as text."""
    old, new = text.encode(), rules.spelled(text)
    pairs = [(old[a:b].decode(), new[c:d].decode()) for a, b, c, d in rules.pieces(text).tolist()]
    return [(before, after) for before, after in pairs if before != after]


def with_rules(rules: normalizers.Normalizer) -> Normalization:
    return normalization(tiny.bytes_only(normalizer=rules))


@pytest.mark.parametrize(
    ("rules", "text", "expected"),
    [
        (normalizers.NFC(), "cafe\u0301 a\u0308b", [("e\u0301", "\u00e9"), ("a\u0308", "\u00e4")]),
        (normalizers.NFC(), "\u1100\u1161\u11a8\uac00", [("\u1100\u1161\u11a8", "\uac01")]),
        (normalizers.NFD(), "x\u00e9y", [("\u00e9", "e\u0301")]),
        (normalizers.NFKC(), "a \ufb01ne \u00bd", [("\ufb01", "fi"), ("\u00bd", "1\u20442")]),
        (normalizers.NFC(), "q\u0323\u0307 q\u0307\u0323", [("q\u0307\u0323", "q\u0323\u0307")]),
        (normalizers.Lowercase(), "aBc\u0130", [("B", "b"), ("\u0130", "i\u0307")]),
        (normalizers.StripAccents(), "e\u0301a", [("e\u0301", "e")]),
        (normalizers.Strip(), "  a b\n", [("  ", ""), ("\n", "")]),
        (normalizers.Replace("``", '"'), "a``b``", [("``", '"'), ("``", '"')]),
        (normalizers.Replace(Regex(" {2,}"), " "), "a   b c", [("   ", " ")]),
        (normalizers.Nmt(), "a\u200bb\x01c", [("\u200b", " "), ("\x01", "")]),
        (
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
            "na\u00efve",
            [("\u00ef", "i")],
        ),
    ],
)
def test_pieces_are_as_small_as_the_change(
    rules: normalizers.Normalizer, text: str, expected: list[tuple[str, str]]
) -> None:
    assert pairs_of(with_rules(rules), text) == expected


def test_bert_drops_whitespace_and_says_so() -> None:
    rules = normalization(tiny.wordpiece())
    assert rules.spelled("The  caf\u00e9 \u6771") == "thecafe\u6771".encode()
    assert rules.prefix == b""
    assert rules.changes("two words")
    assert not rules.changes("word")
    assert rules.pieces("a b").tolist() == [[0, 1, 0, 1], [1, 2, 1, 1], [2, 3, 1, 2]]


@pytest.mark.parametrize(
    "tokenizer",
    [
        tiny.metaspace_bpe_with_byte_fallback(),
        tiny.metaspace_bpe_with_byte_fallback(style="gemma"),
        tiny.metaspace_bpe_with_byte_fallback(style="prepend"),
        tiny.unigram(),
    ],
)
def test_a_literal_mark_is_a_space_afterwards(tokenizer: PreTrainedTokenizerFast) -> None:
    rules = normalization(tokenizer)
    assert rules.spelled("a\u2581b") == b"a b"
    assert rules.changes("a\u2581b")
    assert pairs_of(rules, "a\u2581b c") == [("\u2581", " ")]
    assert not rules.changes("plain text\n\nwith   spaces ")


def test_prefixes() -> None:
    first = normalization(tiny.metaspace_bpe_with_byte_fallback())
    assert first.prefix == b" "
    assert [first.prefix_of(text) for text in ("a", " a", "\u2581a", "")] == [b" ", b"", b"", b""]
    legacy = normalization(tiny.metaspace_bpe_with_byte_fallback(style="prepend"))
    assert [legacy.prefix_of(text) for text in ("a", " a", "")] == [b" ", b" ", b""]
    gemma = normalization(tiny.metaspace_bpe_with_byte_fallback(style="gemma"))
    assert [gemma.prefix_of(text) for text in ("a", " a")] == [b"", b""]
    spaced = normalization(tiny.byte_level_bpe(add_prefix_space=True))
    assert [spaced.prefix_of(text) for text in ("a", " a", "\na")] == [b" ", b"", b" "]
    # A stripped space is gone, and the first letter is no longer the first of the text.
    stripped = normalization(tiny.metaspace_bpe_with_byte_fallback(normalizer=normalizers.Strip()))
    assert [stripped.prefix_of(text) for text in ("a", " a")] == [b" ", b""]


def test_a_prefix_inside_the_text_is_an_insertion() -> None:
    rules = normalization(
        tiny.metaspace_bpe_with_byte_fallback(prepend_scheme="always", content_tokens=["\n\n"])
    )
    assert rules.spelled("a\n\nb\n\n c") == b"a\n\n b\n\n c"
    assert rules.pieces("a\n\nb").tolist() == [[0, 3, 0, 3], [3, 3, 3, 4], [3, 4, 4, 5]]


def test_words_with_one_mark_each() -> None:
    rules = normalization(tiny.unigram(split_whitespace=True))
    assert rules.prefix == b" "
    assert not rules.changes("one two three")
    assert rules.spelled("one  two\nthree ") == b"one two three"
    assert pairs_of(rules, "a  b ") == [("  ", " "), (" ", "")]
    assert (rules.prefix_of("\n a"), rules.spelled("\n a")) == (b"", b" a")


def test_literal_bytes_are_bytes_to_a_unigram_model_with_byte_fallback() -> None:
    encoder = text_encoder(tiny.unigram())
    text = "x<0xE4>y"
    assert encoder.bytes.spell(encoder.encode(text)) == b" x\xe4y"
    assert encoder.normalization.spelled(text) == b"x\xe4y"
    assert encoder.normalization.pieces(text).tolist() == [[0, 1, 0, 1], [1, 7, 1, 2], [7, 8, 2, 3]]
    bpe = text_encoder(tiny.metaspace_bpe_with_byte_fallback())
    assert not bpe.normalization.changes(text)


def test_unchanged_text_is_one_piece_and_no_text_none() -> None:
    rules = with_rules(normalizers.NFC())
    assert rules.pieces("plain \u00e9").tolist() == [[0, 8, 0, 8]]
    assert rules.pieces("").shape == (0, 4)
    assert rules.rules == ("NFC",)


@settings(max_examples=200, deadline=None)
@given(odd_texts(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Nmt"]))
def test_what_is_not_doubtful_stays(text: str, name: str) -> None:
    rules = getattr(normalizers, name)()
    if not touched(rules, joining=True).doubtful(text):
        assert rules.normalize_str(text) == text


@pytest.mark.parametrize("compiled", [True, False])
def test_a_doubtful_character_is_found_wherever_it_stands(compiled: bool, monkeypatch) -> None:
    if not compiled:
        monkeypatch.setattr(charsets, "_compiled", lambda: None)
    reach = touched(normalizers.NFC(), joining=True)
    safe = "Z\u00e9\u6771\U0001f600"
    for character in ("\u0344", "\ufb1d", "\U0002f81a", "\U0010ffff"):  # beyond the table as well
        for at in range(len(safe) + 1):
            assert reach.doubtful(safe[:at] + character + safe[at:])
    assert not reach.doubtful(safe)
    assert not reach.doubtful("")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_edge_maps_compose_like_the_rewritings(data: st.DataObject) -> None:
    def rewriting(length: int) -> tuple[list[tuple[int, int]], list[int]]:
        cuts = sorted(data.draw(st.sets(st.integers(0, length), max_size=6)))
        spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
        return spans, [data.draw(st.integers(0, 3)) for _ in spans]

    length = data.draw(st.integers(0, 12))
    first = substituted(length, *rewriting(length))
    second = substituted(int(first[-1, 1]), *rewriting(int(first[-1, 1])))
    composed = compose(first, second)
    assert composed is not None
    both = composed.tolist()
    assert both[0] == [0, 0]
    assert both[-1] == [length, int(second[-1, 1])]
    assert both == sorted(both)
    middles = {m: [o for o, k in first.tolist() if k == m] for m in first[:, 1].tolist()}
    images = {m: [n for k, n in second.tolist() if k == m] for m in second[:, 0].tolist()}
    assert {o for o, _ in both} == {o for m in middles.keys() & images for o in middles[m]}
    assert {n for _, n in both} == {n for m in middles.keys() & images for n in images[m]}
    for unchanged in (None, identity(length)):
        assert np.array_equal(compose(unchanged, first), first)
