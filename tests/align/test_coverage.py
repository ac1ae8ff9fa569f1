"""Coverage by script and category, and the overlap of vocabularies: counted by hand."""

import json
from dataclasses import asdict

import pytest
from tokenizers import normalizers

import tiny_tokenizers as tiny
from crosstill.align.coverage import by_script, vocabulary_overlap
from crosstill.align.scripts import CATEGORIES, category_of, script_of
from crosstill.text.encode import text_encoder

LEVEL, BYTES = tiny.byte_level_bpe(), tiny.bytes_only()
GEMMA = tiny.metaspace_bpe_with_byte_fallback(style="gemma", content_tokens=("\n\n", "▁▁"))


@pytest.mark.parametrize(
    ("script", "letters"),
    {
        "Latin": "aZßéﬁＡı",
        "Cyrillic": "жЯ",
        "Greek": "αΩ",
        "Han": "漢々㐀𠮷",
        "Kana": "かカｶー",
        "Hangul": "한ᄒ",
        "Arabic": "مﷺ",
        "Hebrew": "א",
        "Devanagari": "नि",
        "Bengali": "ক",
        "Thai": "ไ",
        "Ethiopic": "አ",
        "Myanmar": "မ",
        "Khmer": "ក",
        "Tibetan": "བ",
        "Common": "1 ,\n😀\u0301\x00",
    }.items(),
)
def test_scripts(script, letters):
    assert {char: script_of(char) for char in letters} == dict.fromkeys(letters, script)


@pytest.mark.parametrize(
    ("category", "chars"),
    {
        "letters": "aé漢ไ\u0301",
        "digits": "7²Ⅷ٣",
        "punctuation": ".,!?'\"()-:;。€",
        "whitespace": " \n\t\u3000\u00a0",
        "code": "{}[]<>=_/\\|",
        "emoji": "😀🚀☺🇩👍\u200d\ufe0f",
        "other": "\x00\ue000\u200b",
    }.items(),
)
def test_categories(category, chars):
    assert {char: category_of(char) for char in chars} == dict.fromkeys(chars, category)
    assert category in CATEGORIES


def test_counts_by_hand():
    """Bytes against bytes: a token and a chunk for every byte."""
    found = by_script(["ab é", "жж 1"], BYTES, BYTES)
    assert (found.texts, found.rewritten, found.skipped) == (2, 0, 0)
    assert found.bytes == found.chunks == found.student_tokens == found.teacher_tokens == 11
    assert asdict(found.aligned) == {"bytes": 1.0, "student_tokens": 1.0, "teacher_tokens": 1.0}
    scripts = {row.name: row for row in found.scripts}
    assert {name: row.bytes for name, row in scripts.items()} == {
        "Latin": 4,
        "Cyrillic": 4,
        "Common": 3,
    }
    assert scripts["Latin"].share == pytest.approx(4 / 11)
    for row in found.scripts:
        assert row.aligned == 1.0
        assert row.one_to_one == pytest.approx(1.0)
        assert row.bytes_per_chunk == pytest.approx(1.0)
        assert row.student_bytes_per_token == pytest.approx(1.0)
    assert {row.name: row.bytes for row in found.categories} == {
        "letters": 8,
        "whitespace": 2,
        "digits": 1,
    }


def test_a_token_over_two_groups_counts_by_its_bytes():
    level = text_encoder(LEVEL)
    assert len(level.encode(" the")) == 1
    found = by_script([" the"], LEVEL, BYTES)
    letters = next(row for row in found.categories if row.name == "letters")
    assert letters.bytes == 3
    assert letters.student_bytes_per_token == pytest.approx(3 / 0.75)
    assert letters.teacher_bytes_per_token == pytest.approx(1.0)
    assert letters.bytes_per_chunk == pytest.approx(4.0)
    assert letters.one_to_one == 0.0


def test_groups_add_up():
    found = by_script(tiny.TEXTS, LEVEL, GEMMA)
    total = sum(len(text.encode()) for text in tiny.TEXTS)
    for rows in (found.scripts, found.categories):
        assert sum(row.bytes for row in rows) == found.bytes == total
        assert sum(row.share for row in rows) == pytest.approx(1.0)
        assert sum(r.bytes / r.student_bytes_per_token for r in rows) == pytest.approx(
            found.student_tokens
        )
        assert sum(r.bytes / r.bytes_per_chunk for r in rows) == pytest.approx(found.chunks)
        assert [row.bytes for row in rows] == sorted((row.bytes for row in rows), reverse=True)


def test_texts_that_cannot_be_aligned_are_counted():
    letters = tiny.characters(["abc"])
    found = by_script(["ab", "xyz", "a\ud800", ""], letters, BYTES)
    assert (found.texts, found.skipped, found.bytes) == (4, 2, 2)
    assert "2 of 4" in found.advice


def test_nothing_to_align():
    found = by_script([], LEVEL, BYTES)
    assert (found.texts, found.bytes, found.scripts) == (0, 0, [])
    assert "No text" in found.advice
    json.dumps(asdict(found))


def test_rewritten_texts_are_counted():
    composing = tiny.byte_level_bpe(normalizer=normalizers.NFC())
    found = by_script(["e\u0301", "e"], composing, BYTES)
    assert found.rewritten == 1
    assert "1 of 2 texts are rewritten" in found.advice


@pytest.mark.parametrize("texts", [tiny.TEXTS, ["a"], ["東京" * 30]])
def test_json_and_advice(texts):
    found = by_script(texts, LEVEL, GEMMA)
    assert json.loads(json.dumps(asdict(found)))["bytes"] == found.bytes
    assert found.advice.endswith(".")


def test_vocabulary_by_hand():
    """Characters a, b, c, space against single bytes: four are shared."""
    found = vocabulary_overlap(tiny.characters(["abc é"]), BYTES)
    assert (found.student, found.teacher, found.shared) == (5, 256, 4)
    assert found.student_share == pytest.approx(4 / 5)
    assert found.teacher_share == pytest.approx(4 / 256)
    assert [asdict(row) for row in found.by_length] == [
        {"length": 1, "student": 4, "teacher": 256, "shared": 4},
        {"length": 2, "student": 1, "teacher": 0, "shared": 0},
    ]
    assert "Only 2%" in found.advice


def test_vocabularies_are_compared_as_bytes_never_as_strings():
    """The same bytes under other names are shared; two names of one byte count once."""
    level, gemma = text_encoder(LEVEL).bytes, text_encoder(GEMMA).bytes
    strings = set(LEVEL.get_vocab()) & set(GEMMA.get_vocab())
    found = vocabulary_overlap(LEVEL, GEMMA)
    spelled = [
        {t for i in range(len(table.lengths)) if (t := table.token(i))} for table in (level, gemma)
    ]
    assert found.shared == len(spelled[0] & spelled[1])
    assert found.student == len(spelled[0])
    assert found.teacher == len(spelled[1]) < int((gemma.lengths > 0).sum())
    assert b" the" in spelled[0] & spelled[1]
    assert "Ġthe" not in strings
    assert sum(row.shared for row in found.by_length) == found.shared


def test_a_vocabulary_with_itself():
    found = vocabulary_overlap(LEVEL, LEVEL)
    assert found.shared == found.student == found.teacher
    assert found.student_share == found.teacher_share == 1.0
    assert "any objective" in found.advice
    json.dumps(asdict(found))
