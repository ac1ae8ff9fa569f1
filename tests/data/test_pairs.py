"""A row for two models: labels, chunks and truncation, checked against the bytes."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from crosstill.data.pairs import IGNORED, pair_row
from crosstill.text.encode import budgets, text_encoder
from crosstill.text.rows import RowFault
from text.chat import THINKING, family_tokenizer
from tiny_tokenizers import (
    CHAT_SPECIALS,
    CHATML,
    byte_level_bpe,
    bytes_only,
    characters,
    metaspace_bpe_with_byte_fallback,
)

QWEN = text_encoder(family_tokenizer("qwen", vocab_size=330))
LLAMA = text_encoder(family_tokenizer("llama3-instruct", vocab_size=450))
GEMMA = text_encoder(family_tokenizer("gemma", vocab_size=290))
LLAMA2 = text_encoder(family_tokenizer("llama2"))
METASPACE = text_encoder(metaspace_bpe_with_byte_fallback())
BYTES = text_encoder(bytes_only())
PAIRS = {
    "qwen from llama": (QWEN, LLAMA),
    "llama from gemma": (LLAMA, GEMMA),
    "gemma from llama2": (GEMMA, LLAMA2),
}
WORDS = ["Hello", " world", "\n", " ", "The cat", " sat", "é", "東京", "😀", "<|im_end|>", "a"]
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map("".join)
CONTENT = st.lists(st.sampled_from(WORDS), max_size=5).map("".join)


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    return {"messages": messages}


def pair(row, student, teacher, max_length=10_000, **options):
    return pair_row(row, student, teacher, max_length=max_length, **options)


def pair_or_reason(row, student, teacher, max_length, **options):
    try:
        return pair(row, student, teacher, max_length=max_length, **options)
    except RowFault as fault:
        return fault.reason


def spelled_by_chunk(encoder, ids, chunk):
    """What each chunk spells; its tokens must lie next to each other."""
    spelled = []
    for k in range(chunk.max(initial=-1) + 1):
        (tokens,) = np.nonzero(chunk == k)
        assert tokens.tolist() == list(range(tokens[0], tokens[-1] + 1))
        spelled.append(encoder.bytes.spell(ids[tokens]))
    return spelled


def check_chunks(made, student, teacher):
    """T05: numbered in order from 0, and both sides spell the same bytes in every chunk."""
    ours = spelled_by_chunk(student, made.student_ids, made.student_chunk)
    theirs = spelled_by_chunk(teacher, made.teacher_ids, made.teacher_chunk)
    assert ours == theirs
    for chunk in (made.student_chunk, made.teacher_chunk):
        inside = chunk[chunk >= 0]
        assert np.all(np.diff(inside) >= 0)
        assert sorted(set(inside)) == list(range(len(ours)))
        assert chunk[0] == -1
    assert made.aligned_bytes == sum(map(len, ours))


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=20)
@given(st.lists(CONTENT, min_size=2, max_size=4).filter(any))
def test_chunks_of_chats(name, loss_on, contents):
    student, teacher = PAIRS[name]
    made = pair(chat(*contents), student, teacher, loss_on=loss_on)
    check_chunks(made, student, teacher)
    assert made.cut_bytes == 0


@given(TEXT)
def test_chunks_of_texts(text):
    for student, teacher in ((QWEN, LLAMA), (LLAMA, BYTES), (QWEN, METASPACE)):
        made = pair({"text": text}, student, teacher)
        ours = spelled_by_chunk(student, made.student_ids, made.student_chunk)
        theirs = spelled_by_chunk(teacher, made.teacher_ids, made.teacher_chunk)
        assert ours == theirs
        assert made.student_chunk[-1] == made.teacher_chunk[-1] == len(ours) - 1
        assert made.student_ids[-1] == student.roles.eos
        assert made.student_labels[-1] == student.roles.eos
        assert made.student_bytes == len(text.encode())


@pytest.mark.parametrize("loss_on", ["completion", "assistant"])
@given(contents=st.lists(CONTENT, min_size=2, max_size=5).filter(any))
def test_labels_are_the_tokens_of_taught_turns(loss_on, contents):
    """Restated for ChatML: bytes of `role, newline, content, newline`, an end in every turn."""
    made = pair(chat(*contents), QWEN, LLAMA, loss_on=loss_on)
    answers = [turn for turn in range(len(contents)) if turn % 2]
    taught = answers if loss_on == "assistant" else answers[-1:]
    ranges, at = [], 0
    for turn, content in enumerate(contents):
        start = at + len("assistant\n" if turn % 2 else "user\n")
        at = start + len(content.encode())
        ranges += [(start, at)] if turn in taught else []
        at += 1
    wanted, at, turn = [], 0, 0
    for id in made.student_ids.tolist():
        end = at + len(QWEN.bytes.token(id))
        if id == QWEN.roles.eot:
            wanted.append(turn in taught)
            turn += 1
        else:
            wanted.append(at < end and any(a <= at and end <= b for a, b in ranges))
        at = end
    assert turn == len(contents)
    assert made.student_labels.tolist() == [
        id if on else IGNORED for id, on in zip(made.student_ids.tolist(), wanted, strict=True)
    ]


def test_labels_of_a_chat_token_by_token():
    row = chat("Hi", "The cat")
    made = pair(row, QWEN, LLAMA)
    labels = [None if id == IGNORED else QWEN.tokenizer.decode([id]) for id in made.student_labels]
    start = len(labels) - labels[::-1].index("<|im_end|>") - 1
    assert "".join(label for label in labels if label) == "The cat<|im_end|>"
    assert labels[start + 1 :] == [None]  # the newline behind the turn is the template's


@pytest.mark.parametrize("loss_on", ["completion", "assistant"])
def test_nothing_before_the_completion_is_taught(loss_on):
    row = {"prompt": "The cat sat ", "completion": "on the mat"}
    made = pair(row, QWEN, LLAMA, loss_on=loss_on)
    taught = QWEN.bytes.spell([id for id in made.student_labels if id != IGNORED])
    assert taught in (b"on the mat", b" the mat")  # " on" may straddle the seam
    chunks = spelled_by_chunk(QWEN, made.student_ids, made.student_chunk)
    assert b"".join(chunks) in b"on the mat"
    assert made.student_bytes == len("on the mat")


def test_a_token_across_the_seam_is_neither_taught_nor_in_a_chunk():
    row = {"prompt": "Hello wor", "completion": "ld, world"}
    made = pair(row, QWEN, LLAMA)
    seam = next(i for i, id in enumerate(made.student_ids) if b"world" in QWEN.bytes.token(int(id)))
    assert QWEN.bytes.spell(made.student_ids[: seam + 1]) == b"Hello world"
    assert made.student_labels[seam] == IGNORED
    assert made.student_chunk[seam] == -1
    assert made.aligned_bytes < made.student_bytes == len("ld, world")


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
def test_the_end_of_a_turn_is_taught_on_both_sides(loss_on):
    for student, teacher in PAIRS.values():
        made = pair(chat("Hi", "Hello"), student, teacher, loss_on=loss_on)
        (ours,) = np.nonzero(made.student_ids == student.roles.eot)
        (theirs,) = np.nonzero(made.teacher_ids == teacher.roles.eot)
        last = made.student_chunk.max()
        assert made.student_chunk[ours[-1]] == made.teacher_chunk[theirs[-1]] == last
        assert made.student_labels[ours[-1]] == student.roles.eot


def test_headers_and_user_turns_are_taught_under_all():
    made = pair(chat("Hi", "Hello"), QWEN, LLAMA, loss_on="all")
    starts = made.student_ids == QWEN.roles.start_header_ids[0]
    assert np.array_equal(made.student_labels[starts] != IGNORED, [False, True])  # none at 0
    assert (made.student_chunk[starts] >= 0).tolist() == [False, True]


def test_pad_equal_to_eos_is_taught_in_texts_and_chats():
    tokenizer = family_tokenizer("llama2")
    tokenizer.pad_token = tokenizer.eos_token
    student = text_encoder(tokenizer)
    for row in ({"text": "The cat"}, chat("Hi", "The cat")):
        made = pair(row, student, LLAMA)
        assert made.student_labels[-1] == student.roles.eos == student.roles.pad
        assert made.student_chunk[-1] == made.student_chunk.max()


def test_contents_stripped_on_one_side_align_in_what_both_show():
    made = pair(chat("Hi", "\n The cat sat \n"), QWEN, LLAMA)
    check_chunks(made, QWEN, LLAMA)
    chunks = spelled_by_chunk(QWEN, made.student_ids, made.student_chunk)
    assert b"cat" in b"".join(chunks)
    assert chunks[-1] == b""  # the end of the turn
    assert b"".join(chunks).strip() == b"".join(chunks) != b""


def test_thinking_that_only_one_template_takes_apart():
    tokenizer = family_tokenizer("qwen", vocab_size=330)
    tokenizer.chat_template = THINKING
    student = text_encoder(tokenizer)
    content = "<think>\nTwo and two.\n</think>\n\nFour it is."
    made = pair(chat("2+2?", content), student, LLAMA)
    check_chunks(made, student, LLAMA)
    spelled = b"".join(spelled_by_chunk(student, made.student_ids, made.student_chunk))
    assert b"and two" in spelled
    assert b"it is" in spelled
    assert b"think" not in spelled


def test_a_rewritten_text_aligns_under_its_normaliser():
    student = text_encoder(byte_level_bpe(normalizer=normalizers.NFC(), vocab_size=330))
    made = pair({"text": "Un cafe\u0301 au lait"}, student, LLAMA)
    ours = b"".join(spelled_by_chunk(student, made.student_ids, made.student_chunk)).decode()
    theirs = b"".join(spelled_by_chunk(LLAMA, made.teacher_ids, made.teacher_chunk)).decode()
    assert "caf\u00e9 au" in ours
    assert "cafe\u0301 au" in theirs


@given(TEXT, st.integers(2, 30))
def test_t09_truncation_takes_the_same_bytes_from_both_sides(text, max_length):
    for student, teacher in ((QWEN, LLAMA), (LLAMA, BYTES), (BYTES, QWEN)):
        whole = pair({"text": text}, student, teacher)
        made = pair_or_reason({"text": text}, student, teacher, max_length)
        if made == "too_long":
            continue
        sizes = len(made.student_ids), len(made.teacher_ids)
        assert max(sizes) <= max_length
        assert student.bytes.spell(made.student_ids) == teacher.bytes.spell(made.teacher_ids)
        assert np.array_equal(whole.student_ids[: sizes[0]], made.student_ids)
        assert np.array_equal(whole.student_chunk[: sizes[0]], made.student_chunk)
        assert np.array_equal(whole.teacher_chunk[: sizes[1]], made.teacher_chunk)
        assert np.array_equal(whole.student_labels[: sizes[0]], made.student_labels)
        kept = len(student.bytes.spell(made.student_ids))
        assert (made.student_bytes, made.cut_bytes) == (kept, len(text.encode()) - kept)
        longer = whole.student_chunk.max() > made.student_chunk.max()
        if longer:  # no further chunk would have fitted
            next_chunk = made.student_chunk.max() + 1
            ends = [
                np.flatnonzero(chunk == next_chunk)[-1] + 1
                for chunk in (whole.student_chunk, whole.teacher_chunk)
            ]
            assert max(ends) > max_length


def test_t09_limit_inside_a_character():
    """The student's bytes of an emoji are four tokens; the limit falls between them."""
    text, student = "a😀b", BYTES
    teacher = text_encoder(byte_level_bpe(["😀" * 9, "a😀b"], 300))
    assert len(teacher.encode("😀")) == 1
    for limit in (3, 4):
        with pytest.raises(RowFault, match="max_length"):
            pair({"text": text}, student, teacher, max_length=limit)
    made = pair({"text": text}, student, teacher, max_length=5)
    assert student.bytes.spell(made.student_ids).decode() == "a😀"
    assert teacher.bytes.spell(made.teacher_ids).decode() == "a😀"
    assert made.cut_bytes == 1


def test_a_byte_student_is_not_cut_to_a_quarter():
    """Each side has its own limit: with one for both, a byte student keeps a quarter of the row."""
    text = "The cat sat on the mat. " * 40
    row, limit = {"text": text}, len(LLAMA.encode(text)) + 1
    even = pair(row, BYTES, LLAMA, max_length=limit)
    assert even.student_bytes < len(text) / 2
    assert even.cut_bytes == len(text) - even.student_bytes
    own = pair(row, BYTES, LLAMA, max_length=budgets(BYTES, LLAMA, limit))
    assert (own.student_bytes, own.cut_bytes) == (len(text), 0)
    cut = pair(row, BYTES, LLAMA, max_length=(len(text) + 1, limit // 2))
    assert len(cut.teacher_ids) <= limit // 2
    assert cut.student_bytes + cut.cut_bytes == len(text)
    assert cut.cut_bytes > 0
    with pytest.raises(RowFault, match=r"max_length \(400 student and 1 teacher tokens\)"):
        pair(row, BYTES, LLAMA, max_length=(400, 1))


@given(st.lists(CONTENT, min_size=2, max_size=4).filter(any), st.integers(2, 60))
def test_truncation_of_chats(contents, max_length):
    row = chat(*contents)
    whole = pair(row, QWEN, LLAMA, loss_on="all")
    made = pair_or_reason(row, QWEN, LLAMA, max_length, loss_on="all")
    if made == "too_long":
        return
    assert max(len(made.student_ids), len(made.teacher_ids)) <= max_length
    check_chunks(made, QWEN, LLAMA)
    assume(len(made.student_ids) < len(whole.student_ids))
    assert made.student_chunk[-1] == made.teacher_chunk[-1] == made.student_chunk.max()


@pytest.mark.parametrize(
    ("row", "student", "max_length", "reason"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}]}, QWEN, 99, "unsupervised"),
        ({"text": "\u03a9mega"}, text_encoder(characters()), 99, "unknown_token"),
        (chat("The cat sat on the mat", "Yes"), QWEN, 12, "too_long"),
        ({"text": "a" * 2_000_001}, QWEN, 99, "too_long"),
        ({"text": ""}, QWEN, 99, "empty"),
        ({"text": "\ud800"}, QWEN, 99, "bad_unicode"),
        ({"nothing": 1}, QWEN, 99, "malformed"),
    ],
)
def test_rows_that_cannot_be_used(row, student, max_length, reason):
    with pytest.raises(RowFault) as caught:
        pair(row, student, LLAMA, max_length=max_length)
    assert caught.value.reason == reason


def test_a_single_token_without_an_end_has_nothing_to_teach():
    student = text_encoder(byte_level_bpe(specials={}, chat_template=CHATML))
    with pytest.raises(RowFault) as caught:
        pair({"text": "a"}, student, LLAMA)
    assert caught.value.reason == "unaligned"


def test_each_side_has_its_own_template_arguments():
    template = "{{ mood }}" + CHATML
    student = text_encoder(byte_level_bpe(specials=CHAT_SPECIALS, chat_template=template))
    made = pair(
        chat("Hi", "Hello"),
        student,
        student,
        chat_template_kwargs={"mood": "sad"},
        teacher_chat_template_kwargs={"mood": "glad"},
    )
    assert student.bytes.spell(made.student_ids).startswith(b"sad")
    assert student.bytes.spell(made.teacher_ids).startswith(b"glad")
