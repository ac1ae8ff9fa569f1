"""The public alignment of a text: what it gives, what it refuses."""

import unicodedata

import numpy as np
import pytest
from tokenizers import normalizers

import crosstill
import tiny_tokenizers as tiny
from crosstill.align.chunks import AlignedFraction, align, align_ids
from crosstill.errors import AlignmentError, DataError, TokenizerError
from crosstill.text.encode import text_encoder

BYTES = tiny.bytes_only()
LEVEL = tiny.byte_level_bpe()
LLAMA2 = tiny.metaspace_bpe_with_byte_fallback(style="prepend")
GEMMA = tiny.metaspace_bpe_with_byte_fallback(style="gemma", content_tokens=("\n\n", "▁▁"))
COMPOSING = tiny.byte_level_bpe(normalizer=normalizers.NFC())


def spelled(alignment):
    """The bytes of all chunks on either side."""
    n = len(alignment.chunks)
    return (
        [alignment.student_bytes(k) for k in range(n)],
        [alignment.teacher_bytes(k) for k in range(n)],
    )


def test_the_design_of_record():
    a = crosstill.align("The cats sat.", LEVEL, GEMMA)
    assert a.student_ids == LEVEL.encode("The cats sat.", add_special_tokens=False)
    assert isinstance(a.teacher_ids, list)
    assert all(isinstance(k, int) for (s, t) in a.chunks for k in (*s, *t))
    student, teacher = spelled(a)
    assert student == teacher
    assert b"".join(student) == b"The cats sat."
    assert a.rewritten is False
    assert a.coverage == AlignedFraction(bytes=1.0, student_tokens=1.0, teacher_tokens=1.0)


def test_the_package_of_the_same_name_can_be_called_too():
    import crosstill.align.kernel  # binds crosstill.align to the package

    assert crosstill.align("cat", LEVEL, BYTES).chunks == align("cat", LEVEL, BYTES).chunks


def test_a_byte_tokenizer_meets_every_token():
    text = "The cats: 東京 😀\n"
    a = align(text, LEVEL, BYTES)
    assert len(a.chunks) == len(a.student_ids)
    assert [s1 - s0 for (s0, s1), _ in a.chunks] == [1] * len(a.chunks)
    assert a.teacher_ids == list(text.encode())


@pytest.mark.parametrize("text", ["cat", " cat", "  cat", "", " ", "\n", "▁", "東"])
@pytest.mark.parametrize("tokenizer", [LLAMA2, tiny.unigram(), GEMMA])
def test_a_prefix_space_of_its_own_vanishes(text, tokenizer):
    for pair in ((tokenizer, BYTES), (BYTES, tokenizer)):
        a = align(text, *pair)
        if not a.rewritten:
            assert spelled(a) == (spelled(a)[0], spelled(a)[0])
            assert b"".join(spelled(a)[0]) == text.encode()
        covered = [k for _, (t0, t1) in a.chunks for k in range(t0, t1)]
        assert covered == list(range(len(a.teacher_ids)))


def test_a_lone_prefix_space_is_in_the_first_chunk():
    encoder = text_encoder(LLAMA2)
    lone = encoder.encode(" ")[:1]
    assert encoder.bytes.spell(lone) == b" "
    ids = lone + [i for c in b"ab" for i in LLAMA2.convert_tokens_to_ids([f"<0x{c:02X}>"])]
    a = align_ids("ab", ids, list(b"ab"), encoder, text_encoder(BYTES))
    assert a.chunks == [((0, 2), (0, 1)), ((2, 3), (1, 2))]
    assert spelled(a) == ([b"a", b"b"], [b"a", b"b"])


def test_nothing_is_aligned_with_nothing():
    a = align("", LEVEL, LLAMA2)
    assert (a.chunks, a.student_ids, a.teacher_ids) == ([], [], [])
    assert a.coverage == AlignedFraction(1.0, 1.0, 1.0)


def test_names_of_special_tokens_are_text():
    text = "a<|eos|>b<|bos|>"
    a = align(text, LEVEL, GEMMA)
    assert b"".join(spelled(a)[0]) == b"".join(spelled(a)[1]) == text.encode()


@pytest.mark.parametrize(
    "text", ["e\u0301te\u0301", "x\u0340y", "\u1112\u1161\u11ab", "A\u030a\u0301"]
)
def test_a_rewritten_text_is_flagged_and_equal_under_the_normaliser(text):
    a = align(text, COMPOSING, BYTES)
    assert a.rewritten
    student, teacher = spelled(a)
    assert b"".join(teacher) == text.encode()
    assert b"".join(student) == unicodedata.normalize("NFC", text).encode()
    for own, other in zip(student, teacher, strict=True):
        assert own.decode() == unicodedata.normalize("NFC", other.decode())


def test_edges_inside_a_rewritten_character_never_match():
    a = align("ae\u0301b", tiny.bytes_only(normalizer=normalizers.NFC()), BYTES)
    assert spelled(a) == ([b"a", b"\xc3\xa9", b"b"], [b"a", b"e\xcc\x81", b"b"])


def test_two_that_rewrite_alike_meet_inside_the_character_too():
    composing = tiny.bytes_only(normalizer=normalizers.NFC())
    a = align("e\u0301", composing, composing)
    assert spelled(a) == ([b"\xc3", b"\xa9"], [b"\xc3", b"\xa9"])
    assert a.rewritten


def test_dropped_spaces_go_with_what_follows():
    a = align("the cat  ", tiny.wordpiece(), BYTES)
    student, teacher = spelled(a)
    assert b"".join(student) == b"thecat"
    assert b"".join(teacher) == b"the cat  "
    assert [t.strip() for t in teacher] == student
    assert a.rewritten


@pytest.mark.parametrize("pair", [(0, 1), (1, 0)])
def test_unknown_tokens_are_refused(pair):
    tokenizers = tiny.characters(["abc"]), BYTES
    with pytest.raises(AlignmentError, match="unknown token") as caught:
        align("abzc", *(tokenizers[k] for k in pair))
    assert type(caught.value) is AlignmentError
    assert "position 2" in str(caught.value)


def test_tokens_that_do_not_spell_the_text_are_refused():
    student, teacher = text_encoder(LEVEL), text_encoder(BYTES)
    for text, drift in (("cat", "cats"), ("cat", "ca")):
        with pytest.raises(AlignmentError, match="teacher's tokens"):
            align_ids(text, student.encode(text), list(drift.encode()), student, teacher)


@pytest.mark.parametrize("text", ["cats", "e\u0301"])
@pytest.mark.parametrize("id", [-100, 1 << 20, 1 << 40])
def test_an_id_of_no_token_is_named(text, id):
    student, teacher = text_encoder(COMPOSING), text_encoder(BYTES)
    ids = student.encode(text), [*teacher.encode(text)[:-1], id]
    for sides in ((*ids, student, teacher), (*ids[::-1], teacher, student)):
        with pytest.raises(TokenizerError, match=f"from 0 to .*got {id}"):
            align_ids(text, *sides)


def test_a_lone_surrogate_is_bad_data():
    with pytest.raises(DataError, match="surrogate"):
        align("a\ud83d", LEVEL, BYTES)


def test_a_tokenizer_is_expected():
    with pytest.raises((TokenizerError, TypeError, AttributeError)):
        align("a", "llama", BYTES)


def test_chunk_arrays_and_ranges_say_the_same():
    a = align(tiny.TEXTS[3], LEVEL, GEMMA)
    for chunk, side in ((a.student_chunk, 0), (a.teacher_chunk, 1)):
        assert chunk.dtype == np.int32
        for k, ranges in enumerate(a.chunks):
            start, end = ranges[side]
            assert (chunk[start:end] == k).all()


ADVERSARIAL = [
    "👩‍👩‍👧‍👦 🇩🇪🏳️‍🌈 👍🏽",  # split multi-byte characters
    "e\u0301 a\u0308 o\u0302\u0323 \u1100\u1161\u11a8",  # NFD accents and jamo
    "\u200b\u200d\ufeff\u00ad\u2028\u0000\u001b[31m",  # what cannot be seen
    "\ufffd\ufffd é\ufffd",  # what decoders write for broken bytes
    "a  b   c\t\td \n\n\n e\r\n",  # runs of spaces
    "Ġ Ċ ▁ ▁▁ <0x41> <0xC3><0xA9> Ã©",  # names that vocabularies use
    "ﬁ ½ ㎏ Å K ſ ẛ̣ İi",  # characters that normalisers fold
    "मुझे किताब ไทยคำ မြန်မာ ភាសា",  # marks that combine
    "漢字かな交じり文　全角　ＡＢＣ",
    "𝒳𝒴 𐍈 \U0010ffff \U000e0041",
    " leading",
    "trailing ",
    " ",
    "  ",
    "\n\n",
]


@pytest.mark.parametrize("text", ADVERSARIAL)
def test_adversarial_strings_realign(text):
    """Every side finds its way back: the tail after the odd part is cut into single words again."""
    tail = " The cat sat"
    tokenizers = [LEVEL, GEMMA, LLAMA2, COMPOSING, BYTES, tiny.unigram()]
    for student in tokenizers:
        for teacher in tokenizers:
            a = align(text + tail, student, teacher)
            own, other = spelled(a)
            if not a.rewritten:
                assert own == other
            last = align("x" + tail, student, teacher)
            assert own[-3:] == spelled(last)[0][-3:]
            assert a.coverage.student_tokens == a.coverage.teacher_tokens == 1.0
