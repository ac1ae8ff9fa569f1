"""Rows with templates, special tokens and supervision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

import tiny_tokenizers as tiny
from crosstill.align.rows import align_rendered
from crosstill.text.encode import text_encoder
from crosstill.text.render import Part, Rendered, render
from crosstill.text.rows import RowFault
from text.chat import FAMILIES, family_tokenizer

WITH_BOS = text_encoder(tiny.byte_level_bpe(add_bos=True))
BYTES = text_encoder(tiny.bytes_only())
COMPOSING = text_encoder(tiny.byte_level_bpe(normalizer=normalizers.NFC()))
LLAMA2 = text_encoder(tiny.metaspace_bpe_with_byte_fallback(style="prepend", add_bos=True))
CHATS = sorted(name for name, family in FAMILIES.items() if family.template)
ENCODERS = {name: text_encoder(family_tokenizer(name)) for name in CHATS}


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def by_chunk(rendered, chunk, n):
    """Token ids of every chunk of one side."""
    return [[rendered.ids[i] for i in np.flatnonzero(chunk == k)] for k in range(n)]


def check(student, teacher, alignment):
    """What must hold for every row; returns the chunks as (student's, teacher's) bytes."""
    n = len(alignment.supervised)
    sides = []
    for rendered, chunk in ((student, alignment.student_chunk), (teacher, alignment.teacher_chunk)):
        assert chunk.dtype == np.int32
        assert len(chunk) == len(rendered.ids)
        assert sorted(set(chunk.tolist()) - {-1}) == list(range(n))
        for k in range(n):
            tokens = np.flatnonzero(chunk == k)
            assert (np.diff(tokens) == 1).all(), "a chunk is a run of tokens"
        if n and chunk[0] >= 0:
            assert not alignment.supervised[chunk[0]]
        for k, ids in enumerate(by_chunk(rendered, chunk, n)):
            assert all(rendered.encoder.bytes.special[ids] == alignment.anchor[k])
        taught = taught_tokens(rendered)
        for k in np.flatnonzero(alignment.supervised):
            assert taught[chunk == k].all()
        sides.append([rendered.encoder.bytes.spell(ids) for ids in by_chunk(rendered, chunk, n)])
    assert 0 <= alignment.aligned_bytes <= alignment.total_bytes
    return list(zip(*sides, strict=True))


def taught_tokens(rendered):
    """Which tokens lie wholly within supervised parts, said plainly."""
    ends = rendered.byte_ends.tolist()
    starts = [0, *ends[:-1]]
    out = np.zeros(len(ends), bool)
    for part in rendered.parts:
        for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
            inside = (
                part.start <= i < part.end
                if part.kind == "special"
                else part.start <= start <= end <= part.end
            )
            out[i] |= inside and part.supervised
    return out


def test_a_bos_on_one_side_shifts_nothing():
    text = "The cats sat on the mat"
    student, teacher = render({"text": text}, WITH_BOS), render({"text": text}, BYTES)
    alignment = align_rendered(student, teacher)
    chunks = check(student, teacher, alignment)
    assert student.ids[0] == WITH_BOS.roles.bos
    assert alignment.student_chunk[0] == -1
    assert b"".join(own for own, _ in chunks) == text.encode()
    assert all(own == other for own, other in chunks)
    # The teacher has no token before its first one: that chunk has no likelihood there.
    assert alignment.supervised.tolist() == [False] + [True] * (len(chunks) - 1)
    assert alignment.anchor.tolist() == [False] * (len(chunks) - 1) + [True]
    first = len(chunks[0][0])
    assert alignment.total_bytes == len(text)
    assert alignment.aligned_bytes == len(text) - first


def test_an_end_of_text_is_taught_as_an_anchor():
    student, teacher = render({"text": "a"}, WITH_BOS), render({"text": "a"}, LLAMA2)
    alignment = align_rendered(student, teacher)
    k = alignment.student_chunk[-1]
    assert alignment.anchor[k]
    assert alignment.supervised[k]
    assert alignment.teacher_chunk[-1] == k
    assert student.ids[-1] == WITH_BOS.roles.eos
    bos = alignment.student_chunk[0]  # both have one, and it is nobody's prediction
    assert alignment.anchor[bos]
    assert not alignment.supervised[bos]


def test_an_empty_text_is_fine():
    for student in (WITH_BOS, BYTES, LLAMA2):
        for teacher in (WITH_BOS, BYTES, LLAMA2):
            sides = render({"text": "a"}, student), render({"text": "a"}, teacher)
            empty = [Rendered([], np.zeros(0, np.int64), (), side.encoder) for side in sides]
            alignment = align_rendered(*empty)
            assert len(alignment.supervised) == 0
            assert alignment.total_bytes == alignment.aligned_bytes == 0
            assert len(align_rendered(empty[0], sides[1]).supervised) == 0


@pytest.mark.parametrize("student", CHATS)
@pytest.mark.parametrize("teacher", CHATS)
def test_chat_rows_of_all_families_meet(student, teacher):
    row = chat(("user", "  How are you? \n"), ("assistant", "Fine, thank you. über 東京"))
    sides = [render(row, ENCODERS[name]) for name in (student, teacher)]
    alignment = align_rendered(*sides)
    chunks = check(*sides, alignment)
    assert all(own == other for own, other in chunks)
    text = b"".join(own for own, _ in chunks)
    assert b"are you" in text
    taught = b"".join(own for k, (own, _) in enumerate(chunks) if alignment.supervised[k])
    assert taught in "Fine, thank you. über 東京".encode()
    assert "thank you. über 東京".encode() in taught
    assert alignment.supervised.any()


def test_ends_of_turn_are_anchors_across_families():
    row = chat(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "See you"))
    sides = [render(row, ENCODERS[n]) for n in ("llama3-instruct", "qwen")]
    alignment = align_rendered(*sides)
    check(*sides, alignment)
    eot = [side.encoder.roles.eot for side in sides]
    ends = [
        (own, other)
        for own, other in zip(
            by_chunk(sides[0], alignment.student_chunk, len(alignment.anchor)),
            by_chunk(sides[1], alignment.teacher_chunk, len(alignment.anchor)),
            strict=True,
        )
        if own == [eot[0]]
    ]
    assert ends == [([eot[0]], [eot[1]])] * 4


def test_a_system_turn_that_one_template_adds_is_outside():
    row = chat(("user", "Hi"), ("assistant", "Hello"))
    sides = [render(row, ENCODERS[n]) for n in ("llama3-instruct", "smollm2")]
    alignment = align_rendered(*sides)
    chunks = check(*sides, alignment)
    assert b"Be kind." in sides[1].encoder.bytes.spell(sides[1].ids)
    assert b"kind" not in b"".join(other for _, other in chunks)


def hand_made(encoder, pieces, parts):
    """A row from pieces of text (each tokenised by itself) and special ids, with its parts."""
    ids = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else encoder.encode(piece)
    return Rendered(ids, encoder.bytes.ends(ids), tuple(parts), encoder)


def content(text, start, *, message=0, role="user", supervised=True, offset=0):
    return Part(
        "content", role, message, text, start, start + len(text.encode()), supervised, offset
    )


def special(role, start, end, message=0, supervised=True):
    return Part("special", role, message, "", start, end, supervised)


def test_a_token_across_a_seam_belongs_to_none():
    level = text_encoder(tiny.byte_level_bpe())
    assert len(level.encode(" the")) == 1
    # The student's template ends in a space, and the text begins with "the": one token for both.
    student = hand_made(level, ["Q", " the", " cats"], [content("the cats", 2)])
    teacher = hand_made(BYTES, ["Q:", "the cats"], [content("the cats", 2)])
    alignment = align_rendered(student, teacher)
    chunks = check(student, teacher, alignment)
    assert alignment.student_chunk[:2].tolist() == [-1, -1]
    assert chunks[0][0].startswith(b" ")
    assert b"".join(own for own, _ in chunks) == b" cats"
    assert alignment.teacher_chunk[:5].tolist() == [-1] * 5


def test_a_longer_special_is_one_anchor():
    eos = WITH_BOS.roles.eos, BYTES.roles.eos
    student = hand_made(WITH_BOS, ["a", eos[0], eos[0]], [content("a", 0), special("eot", 1, 3)])
    teacher = hand_made(BYTES, ["a", eos[1]], [content("a", 0), special("eot", 1, 2)])
    alignment = align_rendered(student, teacher)
    check(student, teacher, alignment)
    assert alignment.student_chunk.tolist() == [0, 1, 1]
    assert alignment.teacher_chunk.tolist() == [0, 1]
    assert alignment.anchor.tolist() == [False, True]
    assert alignment.supervised.tolist() == [False, True]


def test_more_of_a_role_on_one_side_pairs_none():
    eos = BYTES.roles.eos
    student = hand_made(BYTES, ["a", eos, eos], [special("eot", 1, 2), special("eot", 2, 3)])
    teacher = hand_made(BYTES, ["a", eos], [special("eot", 1, 2)])
    assert len(align_rendered(student, teacher).supervised) == 0


def test_the_same_roles_in_other_messages_are_not_paired():
    eos = BYTES.roles.eos
    student = hand_made(BYTES, [eos], [special("eot", 0, 1, message=0)])
    teacher = hand_made(BYTES, [eos], [special("eot", 0, 1, message=1)])
    assert len(align_rendered(student, teacher).supervised) == 0


def test_other_texts_are_never_paired():
    student = hand_made(BYTES, ["abcd"], [content("abcd", 0)])
    teacher = hand_made(BYTES, ["abxd"], [content("abxd", 0)])
    assert len(align_rendered(student, teacher).supervised) == 0


def test_what_a_template_strips_is_outside():
    student = hand_made(BYTES, ["\n  é cat \n"], [content("  é cat ", 1)])
    teacher = hand_made(BYTES, [":é cat."], [content("é cat", 1, offset=2)])
    alignment = align_rendered(student, teacher)
    chunks = check(student, teacher, alignment)
    assert b"".join(own for own, _ in chunks) == "é cat".encode()
    assert alignment.student_chunk.tolist() == [-1, -1, -1, 0, 1, 2, 3, 4, 5, -1, -1]
    assert alignment.total_bytes == len("  é cat ".encode())
    assert alignment.aligned_bytes == len("é cat".encode())


def test_a_content_that_one_side_splits_is_paired_by_characters():
    """As a template does that sets the reasoning apart from the answer."""
    whole = hand_made(BYTES, ["one|two"], [content("one|two", 0)])
    split = hand_made(BYTES, ["<one>", "[two]"], [content("one", 1), content("two", 6, offset=4)])
    alignment = align_rendered(whole, split)
    chunks = check(whole, split, alignment)
    assert b"".join(other for _, other in chunks) == b"onetwo"
    assert alignment.student_chunk.tolist() == [0, 1, 2, -1, 3, 4, 5]


def test_another_order_keeps_the_larger_part_of_it():
    student = hand_made(
        BYTES, ["system", "user!!!!"], [content("system", 0), content("user!!!!", 6, message=1)]
    )
    teacher = hand_made(
        BYTES, ["user!!!!", "system"], [content("user!!!!", 0, message=1), content("system", 8)]
    )
    chunks = check(student, teacher, align_rendered(student, teacher))
    assert b"".join(own for own, _ in chunks) == b"user!!!!"


def test_supervision_needs_both_sides():
    for flags in ((True, False), (False, True), (True, True)):
        sides = [hand_made(BYTES, ["xab"], [content("ab", 1, supervised=flag)]) for flag in flags]
        alignment = align_rendered(*sides)
        assert alignment.supervised.tolist() == [all(flags)] * 2
        assert alignment.aligned_bytes == (2 if all(flags) else 0)
        assert alignment.total_bytes == (2 if flags[0] else 0)


def test_a_rewritten_content_is_aligned_and_flagged():
    text = "L'e\u0301te\u0301 est beau"
    sides = render({"text": text}, COMPOSING), render({"text": text}, BYTES)
    alignment = align_rendered(*sides)
    chunks = check(*sides, alignment)
    assert alignment.rewritten
    assert b"".join(other for _, other in chunks).decode() == text
    assert all(
        own == normalizers.NFC().normalize_str(other.decode()).encode() for own, other in chunks
    )
    assert not align_rendered(
        render({"text": "plain"}, COMPOSING), render({"text": "plain"}, BYTES)
    ).rewritten


def test_a_content_that_a_normaliser_would_change_alone_stays_within_its_row():
    stripping = text_encoder(tiny.bytes_only(normalizer=normalizers.Strip()))
    student = hand_made(stripping, ["<a >"], [content("a ", 1)])
    teacher = hand_made(BYTES, [":a "], [content("a ", 1)])
    alignment = align_rendered(student, teacher)
    assert check(student, teacher, alignment) == [(b"a", b"a"), (b" ", b" ")]
    assert not alignment.rewritten


def test_unknown_tokens_are_a_counted_fault():
    letters = text_encoder(tiny.characters(["abc"]))
    student = hand_made(letters, ["abzc"], [])
    teacher = hand_made(BYTES, ["abzc"], [content("abzc", 0)])
    for pair in ((student, teacher), (teacher, student)):
        with pytest.raises(RowFault, match="position 2") as caught:
            align_rendered(*pair)
        assert caught.value.reason == "unknown_token"


def test_a_content_of_another_length_is_a_counted_fault():
    student = hand_made(BYTES, ["abcd"], [content("abcd", 0)])
    drifted = Part("content", "user", 0, "abcd", 0, 3, True)
    teacher = hand_made(BYTES, ["abcd"], [drifted])
    with pytest.raises(RowFault, match="4 bytes, got 3") as caught:
        align_rendered(student, teacher)
    assert caught.value.reason == "unaligned"


TEXTS = st.text(
    st.one_of(
        st.sampled_from("ab \n<|é東\u0301ﬁ"), st.characters(codec="utf-8", max_codepoint=0x2FFF)
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(st.lists(TEXTS, min_size=2, max_size=4), st.sampled_from(CHATS), st.sampled_from(CHATS))
def test_every_chunk_of_every_row_spells_the_same(texts, student, teacher):
    roles = ("user", "assistant")
    row = chat(*((roles[k % 2], text) for k, text in enumerate(texts)))
    try:
        sides = [render(row, ENCODERS[name]) for name in (student, teacher)]
    except RowFault:
        return
    forth, back = align_rendered(*sides), align_rendered(*sides[::-1])
    assert all(own == other for own, other in check(*sides, forth))
    assert forth.student_chunk.tolist() == back.teacher_chunk.tolist()
    assert forth.supervised.tolist() == back.supervised.tolist()
    if student == teacher:  # everything but the scaffold meets itself
        taught = taught_tokens(sides[0])
        taught[0] = False
        assert (forth.student_chunk[taught] >= 0).all()
