"""Rewording: whole words alone, drawn from what the teacher expects, and nothing else changes."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_tokenizers
import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.reword import Rewording, words
from crosstill.text.encode import text_encoder

TEXT = "The cat sat on the mat; it (the cat) is one of three cats.\n\nHello world!"
CHAT = [
    {"role": "user", "content": "  the cat sat on the mat "},
    {"role": "assistant", "content": "the cats and the mats and the cat"},
]


@pytest.fixture(scope="module")
def teacher():
    tokenizer = tiny.chat_tokenizers()["teacher_processing_class"]
    return LocalTeacher(tiny_teacher(tokenizer), tokenizer)


def tiny_teacher(tokenizer):
    return tiny.tiny_models.llama(len(tokenizer) + 2, tied=False, scale=2.0)


@pytest.fixture(scope="module")
def to_bytes():
    return text_encoder(tiny_tokenizers.bytes_only())


def said(encoder, ids):
    return [encoder.bytes.spell([id]).decode("utf-8", "replace") for id in ids]


def by_hand(encoder, text):
    """The places of a text that may be replaced, from the definition, and its tokens."""
    tokens = said(encoder, encoder.encode(text))
    places = []
    for place, token in enumerate(tokens):
        before, after = "".join(tokens[:place]), "".join(tokens[place + 1 :])
        bare = token.removeprefix(" ")
        starts = token[:1] == " " or not before[-1:].isalpha()
        if bare.isalpha() and "\ufffd" not in token and starts and not after[:1].isalpha():
            places.append(place)
    return places, tokens


def test_a_word_is_spelled_where_it_takes_several_tokens(teacher, to_bytes):
    found, encoder = words(teacher.encoder, to_bytes), teacher.encoder
    for id, token in enumerate(said(encoder, range(encoder.vocab_size))):
        bare = token.removeprefix(" ")
        assert found.word[id] == (bare.isalpha() and "\ufffd" not in token), token
        if found.word[id]:
            assert found.spaced[id] == token.startswith(" ")
            assert found.spelled[id] == (len(token.encode()) > 1), token
    assert 20 < found.spelled.sum() < encoder.vocab_size
    assert not words(encoder, encoder).spelled.any()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_whole_words_alone_change(teacher, to_bytes, share):
    (new,) = Rewording(teacher, to_bytes, share).rows([{"text": TEXT}])
    places, tokens = by_hand(teacher.encoder, TEXT)
    if not teacher.encoder.adds_bos:
        places = [place for place in places if place]  # the teacher reads nothing before the first
    pattern = "".join(
        "( ?)([^\\W\\d_]+)" if place in places else re.escape(token)
        for place, token in enumerate(tokens)
    )
    match = re.fullmatch(pattern, new["text"])
    assert match
    spaces, found = match.groups()[::2], match.groups()[1::2]
    old = [tokens[place] for place in places]
    assert list(spaces) == [" " * word.startswith(" ") for word in old]
    changed = sum(word != was.removeprefix(" ") for word, was in zip(found, old, strict=True))
    assert (share - 0.4) * len(old) < changed <= share * len(old) + 5 * share * (1 - share) * 4
    if share == 1.0:
        both = zip(spaces, found, strict=True)
        assert all(len((space + word).encode()) > 1 for space, word in both)


def test_words_are_drawn_as_the_teacher_expects_them(teacher, to_bytes):
    encoder = teacher.encoder
    text = "it sat on (the"
    ids = encoder.encode(text)
    with torch.no_grad():
        lead = [] if not encoder.adds_bos else [encoder.roles.bos]
        logits = teacher.model(torch.tensor([[*lead, *ids[:-1]]])).logits[0, -1].double()
    found = words(encoder, to_bytes)
    allowed = torch.from_numpy(found.spelled & ~found.spaced)
    chances = logits[: encoder.vocab_size].masked_fill(~allowed, -torch.inf).softmax(0).numpy()
    drawn = Counter()
    for seed in range(600):
        (row,) = Rewording(teacher, to_bytes, 1.0, seed=seed).rows([{"text": text}])
        drawn[row["text"].rpartition("(")[2]] += 1
    spelled = said(encoder, range(encoder.vocab_size))
    expected = Counter()
    for id in np.flatnonzero(chances > 0):
        expected[spelled[id]] += 600 * chances[id]
    assert set(drawn) <= set(expected)
    distance = sum((drawn[w] - n) ** 2 / n for w, n in expected.items() if n >= 5)
    kinds = sum(n >= 5 for n in expected.values())
    assert kinds > 5
    assert distance < kinds + 5 * (2 * kinds) ** 0.5


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.floats(0.0, 1.0), st.integers(0, 5))
def test_what_is_no_word_stays(text, share, seed):
    teacher, to_bytes = made()
    (new,) = Rewording(teacher, to_bytes, share, seed=seed).rows([{"text": text}])
    letters = "".join(c for c in text if not c.isalpha())
    assert "".join(c for c in new["text"] if not c.isalpha()) == letters


@cache
def made():
    tokenizer = tiny.chat_tokenizers()["teacher_processing_class"]
    teacher = LocalTeacher(tiny_teacher(tokenizer), tokenizer)
    return teacher, text_encoder(tiny_tokenizers.bytes_only())


def test_a_row_gets_the_same_words_alone_and_among_others(teacher, to_bytes):
    rewording = Rewording(teacher, to_bytes, 0.7)
    rows = [{"text": TEXT}, {"text": TEXT[10:]}, {"text": "the cat"}, {"text": TEXT * 3}]
    together = rewording.rows(rows)
    assert together == [rewording.rows([row])[0] for row in rows]
    assert together != rows
    other = Rewording(teacher, to_bytes, 0.7, seed=1).rows(rows)
    assert other != together


def test_in_a_chat_only_what_is_taught_changes(teacher, to_bytes):
    row = {"messages": CHAT, "text": None}
    for loss_on, kept in (("assistant", [0]), ("all", [])):
        (new,) = Rewording(teacher, to_bytes, 1.0, loss_on=loss_on).rows([row])
        assert [turn["role"] for turn in new["messages"]] == ["user", "assistant"]
        for place, (turn, old) in enumerate(zip(new["messages"], CHAT, strict=True)):
            assert (turn["content"] == old["content"]) == (place in kept)
            # a template may strip spaces: what it does not show stays
            assert turn["content"][:2].isspace() == old["content"][:2].isspace()
    assert CHAT[1]["content"].startswith("the cats and")  # the rows given are left alone


def test_prompts_and_completions(teacher, to_bytes):
    rewording = Rewording(teacher, to_bytes, 1.0, loss_on="completion")
    plain = {"prompt": "The cat sat on", "completion": " the mat on the mat"}
    turns = {"prompt": CHAT[:1], "completion": CHAT[1:]}
    for row in (plain, turns):
        (new,) = rewording.rows([row])
        assert new["prompt"] == row["prompt"]
        assert new["completion"] != row["completion"]
        assert set(new) == set(row)


def test_rows_that_cannot_be_read_and_short_ones_stay(teacher, to_bytes):
    rows = [{"text": ""}, {"messages": "no"}, {"text": "a"}, {}]
    assert Rewording(teacher, to_bytes, 1.0).rows(rows) == rows


def test_beyond_the_length_that_is_read_nothing_changes(teacher, to_bytes):
    text = "the cat sat on the mat. " * 10
    (new,) = Rewording(teacher, to_bytes, 1.0, max_length=20).rows([{"text": text}])
    assert new["text"].endswith("the cat sat on the mat. ")
    assert new["text"] != text


def test_a_target_that_has_every_word_changes_nothing(teacher):
    rows = [{"text": TEXT}]
    assert Rewording(teacher, teacher.encoder, 1.0).rows(rows) == rows


def test_a_data_set_keeps_its_columns_and_is_made_once(teacher, to_bytes, tmp_path, monkeypatch):
    rows = Dataset.from_list(
        [{"text": TEXT, "messages": None, "row_index": 0}]
        + [{"text": None, "messages": CHAT, "row_index": 1}] * 80
    )
    rewording, file = Rewording(teacher, to_bytes, 0.5), tmp_path / "deep" / "reworded.arrow"
    first = rewording.dataset(rows, file)
    assert first.column_names == rows.column_names
    assert first["row_index"] == rows["row_index"]
    assert first[0] == {**rows[0], **rewording.rows([rows[0]])[0]}
    assert first[80]["messages"] == rewording.rows([rows[80]])[0]["messages"] != CHAT
    monkeypatch.setattr(Rewording, "rows", None)  # it is not made again
    again = Rewording(teacher, to_bytes, 0.5).dataset(rows, file)
    assert again.to_list() == first.to_list()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(teacher, to_bytes, share):
    with pytest.raises(ConfigError, match="from 0 to 1"):
        Rewording(teacher, to_bytes, share)
