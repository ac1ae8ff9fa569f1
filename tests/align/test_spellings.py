"""Tokens of one tokenizer spelled with the tokens of another: to the byte, as text goes on."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

import tiny_tokenizers as tiny
from crosstill.align.spellings import lowest_ids, pieces, spell_before_word, spell_tokens
from crosstill.text.encode import text_encoder
from real.tokenizers import real_tokenizer

TOKENIZERS = {
    "level": tiny.byte_level_bpe(),
    "level with a space before": tiny.byte_level_bpe(vocab_size=350, add_prefix_space=True),
    "composing": tiny.byte_level_bpe(vocab_size=600, normalizer=normalizers.NFC()),
    "metaspace": tiny.metaspace_bpe_with_byte_fallback(),
    "prepend": tiny.metaspace_bpe_with_byte_fallback(style="prepend"),
    "gemma": tiny.metaspace_bpe_with_byte_fallback(style="gemma", content_tokens=("\n\n", "▁▁")),
    "unigram": tiny.unigram(),
    "bytes": tiny.bytes_only(),
    "wordpiece": tiny.wordpiece(),
    "characters": tiny.characters(),
}
ENCODERS = {name: text_encoder(tokenizer) for name, tokenizer in TOKENIZERS.items()}
WHOLE = ("level", "level with a space before", "metaspace", "prepend", "gemma", "unigram", "bytes")
"""Tokenizers that can spell any bytes."""


def rows(spelled):
    offsets, ids = spelled
    return [ids[a:b].tolist() for a, b in pairwise(offsets)]


def check_bytes(source, target, complete):
    """Every row spells its token, or is empty; returns how many are empty that need not be."""
    spelled = spell_tokens(source, target)
    assert len(spelled[0]) == len(source.bytes) + 1
    assert spelled[0][0] == 0
    assert spelled[0][-1] == len(spelled[1])
    for data, row in zip(pieces(source.bytes), rows(spelled), strict=True):
        if row or (complete and data):
            assert target.bytes.spell(row) == data
            assert not target.bytes.special[row].any()
    return spelled


@pytest.mark.parametrize("pair", list(permutations(ENCODERS, 2)), ids=" to ".join)
def test_spellings_spell_the_token(pair):
    source, target = (ENCODERS[name] for name in pair)
    spelled = check_bytes(source, target, complete=pair[1] in WHOLE)
    assert len(spelled[1]) > 0


@pytest.mark.parametrize("name", ["metaspace", "prepend", "unigram", "level with a space before"])
def test_no_space_of_the_tokenizers_own(name):
    """A token that begins inside a word is spelled as it goes on there, not as a word begins."""
    target, source = ENCODERS[name], ENCODERS["level"]
    words = [
        (data, row)
        for data, row in zip(pieces(source.bytes), rows(spell_tokens(source, target)), strict=True)
        if data.isalpha() and len(data) > 1
    ]
    assert len(words) > 40
    for data, row in words:
        assert not target.bytes.token(row[0]).startswith(b" ")
        anchored = target.encode('"' + data.decode())
        assert anchored[len(anchored) - len(row) :] == row


def test_real_encoding_goes_before_the_longest_match():
    source = text_encoder(tiny.byte_level_bpe(["cat cat cat"], vocab_size=270))
    target = text_encoder(tiny.byte_level_bpe(["at at at at ca ca"], vocab_size=262))
    assert b"ca" in pieces(target.bytes)
    spelled = dict(zip(pieces(source.bytes), rows(spell_tokens(source, target)), strict=True))
    assert [target.bytes.token(id) for id in spelled[b"cat"]] == [b"c", b"at"]


def test_pieces_of_characters_are_spelled_by_the_longest_tokens():
    source = tiny.byte_level_bpe(["東東東東 東東京京"], vocab_size=270)
    encoder = text_encoder(source)
    data = pieces(encoder.bytes)
    halves = [v for v, d in enumerate(data) if len(d) == 2 and d[:1] == b"\xe6"]
    assert halves
    spelled = rows(spell_tokens(encoder, ENCODERS["bytes"]))
    own = rows(spell_tokens(encoder, encoder))
    for v in halves:
        assert spelled[v] == list(data[v])
        assert own[v] == [v]


def test_what_a_normaliser_would_rewrite_is_still_spelled_to_the_byte():
    source = tiny.byte_level_bpe(["e\u0301te\u0301e\u0301"], vocab_size=262, use_regex=False)
    encoder, target = text_encoder(source), ENCODERS["composing"]
    accents = [v for v, d in enumerate(pieces(encoder.bytes)) if "e\u0301".encode() in d]
    spelled = rows(spell_tokens(encoder, target))
    assert accents
    for v in accents:
        assert target.bytes.spell(spelled[v]) == encoder.bytes.token(v)


def test_what_cannot_be_spelled_is_empty():
    target = text_encoder(tiny.characters(["abc"]))
    spelled = rows(spell_tokens(ENCODERS["bytes"], target))
    assert [byte for byte in range(256) if spelled[byte]] == list(b"abc")


def test_special_tokens_go_by_the_map_that_is_given():
    source, target = ENCODERS["level"], ENCODERS["bytes"]
    assert rows(spell_tokens(source, target))[source.roles.eos] == []
    given_ = {source.roles.eos: target.roles.eos}
    assert rows(spell_tokens(source, target, given_))[source.roles.eos] == [target.roles.eos]


def test_dropped_bytes_are_left_out_and_spoil_nothing():
    alphabet = [c for c in tiny.pre_tokenizers.ByteLevel.alphabet() if c != "Ā"]  # byte 0x00
    target = text_encoder(tiny.byte_level_bpe(alphabet=alphabet))
    assert target.bytes.missing == b"\0"
    spelled = rows(spell_tokens(ENCODERS["bytes"], target))
    assert spelled[0] == []
    assert all(spelled[1:256])


def test_byte_fallback_stands_back():
    encoder = ENCODERS["metaspace"]
    names = encoder.tokenizer.get_vocab()
    ids = lowest_ids(encoder)
    assert names["<0x61>"] < names["a"]
    assert ids[b"a"] == names["a"]
    assert ids[b"\x07"] == names["<0x07>"]
    for data, id in ids.items():
        same = [v for v, other in enumerate(pieces(encoder.bytes)) if other == data]
        written = [v for v in same if v not in range(names["<0x00>"], names["<0xFF>"] + 1)]
        assert id == min(written or same)


@given(st.lists(st.text(alphabet="ab é東\n", min_size=1, max_size=12), min_size=1, max_size=4))
def test_any_training_text(texts):
    source = text_encoder(tiny.byte_level_bpe(texts, vocab_size=300))
    for name in ("metaspace", "unigram", "level with a space before"):
        check_bytes(source, ENCODERS[name], complete=True)


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(permutations(("llama3", "qwen3", "gemma3", "llama2"), 2)))
def test_real_vocabularies_are_spelled_to_the_byte(pair):
    source, target = (text_encoder(real_tokenizer(name)) for name in pair)
    offsets, _ = check_bytes(source, target, complete=True)
    assert (np.diff(offsets)[~source.bytes.special & (source.bytes.lengths > 0)] > 0).all()


def test_white_space_is_spelled_otherwise_before_a_word():
    """GPT-2's rules, which the tiny byte-level tokenizer has, keep the last line break apart."""
    gemma, level = ENCODERS["gemma"], ENCODERS["level"]
    spelled = rows(spell_before_word(gemma, level, spell_tokens(gemma, level)))
    two = gemma.tokenizer.convert_tokens_to_ids("\n\n")
    break_ = level.tokenizer.convert_tokens_to_ids("\u010a")
    assert spelled[two] == [break_, break_]
    assert level.encode("x\n\nword")[1:3] == [break_, break_]
    tokens = pieces(gemma.bytes)
    for data, row in zip(tokens, spelled, strict=True):
        assert not row or (level.bytes.spell(row) == data and data[-1:].isspace())


def test_white_space_that_both_keep_apart_is_spelled_as_ever():
    one = text_encoder(tiny.byte_level_bpe(["a\n\n b\n\n c\n\n d"] * 4, vocab_size=300))
    other = text_encoder(tiny.byte_level_bpe(["a\n\n b\n\n c\n\n d e"] * 4, vocab_size=310))
    assert one.tokenizer.convert_tokens_to_ids("\u010a\u010a") is not None
    assert not any(rows(spell_before_word(one, other, spell_tokens(one, other))))
