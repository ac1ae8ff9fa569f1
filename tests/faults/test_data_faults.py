"""Faults of data: each is found, named with its place, and never dropped in silence."""

import json
import logging

import pytest
from datasets import Dataset

from crosstill.data.collate import REASONS, PairCollator
from crosstill.data.read import READ_REASONS, read_dataset, read_source
from crosstill.errors import DataError
from crosstill.text.encode import text_encoder
from tiny_tokenizers import byte_level_bpe, bytes_only

GOOD = b'{"text": "good"}'

# name: (line, reason, column of the fault in the line, what the message must say)
BAD_LINES = {
    "cut off": (b'{"text": "a"', "bad_json", 12, "Expecting"),
    "no JSON": (b"text: a", "bad_json", 0, "Expecting value"),
    "after multi-byte text": ('{"text": "é", x}'.encode(), "bad_json", 15, "property name"),
    "list": (b"[1]", "malformed", 0, "list [1]"),
    "missing field": (b'{"question": "a"}', "malformed", 0, "question"),
    "prompt alone": (b'{"prompt": "a"}', "malformed", 0, "prompt"),
    "wrong type": (b'{"text": 1}', "malformed", 0, "int 1"),
    "message without role": (b'{"messages": [{"content": "a"}]}', "malformed", 0, "messages[0]"),
    "no messages": (b'{"messages": []}', "malformed", 0, "list []"),
    "image": (
        b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
        "malformed", 0, "messages[0].content[0]",
    ),
    "mixed pair": (b'{"prompt": "a", "completion": []}', "malformed", 0, "both strings"),
    "empty text": (b'{"text": ""}', "empty", 0, "some text"),
    "twice the same key": (b'{"text": "a", "text": "b"}', "duplicate_key", 0, "'text' twice"),
    "key twice inside": (b'{"text": "a", "m": {"k": 1, "k": 2}}', "duplicate_key", 0, "'k'"),
    "NaN": (b'{"text": "a", "score": NaN}', "not_a_number", 0, "NaN"),
    "Infinity": (b'{"text": "a", "score": -Infinity}', "not_a_number", 0, "-Infinity"),
    "lone surrogate": (b'{"text": "a\\ud800"}', "bad_unicode", 0, "\\ud800"),
    "surrogate in a role": (
        b'{"messages": [{"role": "\\udfff", "content": "a"}]}', "bad_unicode", 0, "role",
    ),
    "invalid UTF-8": (b'{"text": "\xff"}', "bad_unicode", 10, "0xff"),
    "Latin-1": ("{\"text\": \"caf\xe9\"}".encode("latin-1"), "bad_unicode", 13, "0xe9"),
    "bottomless": (b"[" * 100_000, "bad_json", 0, "recursion"),
    "endless number": (b'{"a": ' + b"1" * 5000 + b"}", "bad_json", 0, "4300"),
    "NUL bytes": (b"\0\0\0", "bad_json", 0, "Expecting value"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
def test_t01_bad_line_is_named_with_its_place(tmp_path, name):
    bad, _, column, said = BAD_LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\n" + bad + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        read_dataset(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3, byte {len(GOOD) + 2 + column}: ")
    assert said in message
    assert repr(bad[:80]) in message
    assert "on_bad_row='skip'" in message
    assert len(message) < 1000
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", BAD_LINES)
def test_t01_bad_line_is_counted_when_skipped(tmp_path, name, caplog):
    bad, reason, _, _ = BAD_LINES[name]
    assert reason in READ_REASONS
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([GOOD, bad, GOOD]))
    with caplog.at_level(logging.WARNING):
        report = read_source(path, on_bad_row="skip", max_bad_rows=0.34)
    assert report.dataset["text"][:] == ["good", "good"]
    assert report.skipped == {reason: 1}
    assert reason in caplog.text


def test_t01_too_many_bad_rows_are_an_error_that_shows_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([*[GOOD] * 97, b"{", b"[]", b"{"]))
    with pytest.raises(DataError, match=r"2\.000% bad rows, got 3 of 100.*line 98, byte"):
        read_dataset(path, on_bad_row="skip", max_bad_rows=0.02)
    assert len(read_dataset(path, on_bad_row="skip", max_bad_rows=0.03)) == 97


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\r\n"])
def test_t01_empty_file(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.jsonl: expected rows, got"):
        read_dataset(path)


def test_t01_only_bad_rows_are_no_data_set(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{\n")
    with pytest.raises(DataError, match="bad ones only"):
        read_dataset(path, on_bad_row="skip", max_bad_rows=1.0)


def test_t01_no_newline_at_the_end(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + GOOD)
    assert len(read_dataset(path)) == 2


def test_t01_broken_tables(tmp_path):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"PAR1 but not really")
        with pytest.raises(DataError, match=name):
            read_dataset(tmp_path / name)
    Dataset.from_dict({"question": ["a"]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet.*rename the columns"):
        read_dataset(tmp_path / "b.parquet")
    Dataset.from_dict({"text": ["a", None, ""]}).to_parquet(tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet, row 2"):
        read_dataset(tmp_path / "c.parquet")


def test_t01_broken_json_list(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"text": "a"},\n {"text": "b",}]')
    with pytest.raises(DataError, match=r"rows\.json, line 2, byte 30"):
        read_dataset(path, on_bad_row="skip", max_bad_rows=1.0)
    path.write_bytes(b'[{"text": "a"}, {"text": 2}]')
    with pytest.raises(DataError, match=r"rows\.json, row 2"):
        read_dataset(path)


def test_t02_ten_levels_of_nesting_are_fine(tmp_path):
    nested: object = "deep"
    for _ in range(10):
        nested = {"k": [nested]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "extra": nested}))
    assert read_source(path).ignored_columns == ("extra",)


def test_t03_invalid_utf8_in_a_text_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nbad \xff")
    with pytest.raises(DataError, match=r"a\.txt, line 2, byte 9.*0xff"):
        read_dataset(path)


def test_t08_a_line_of_ten_megabytes_and_many_short_rows(tmp_path):
    long, many = tmp_path / "long.jsonl", tmp_path / "many.jsonl"
    long.write_bytes(b'{"text": "' + b"a" * 10_000_000 + b'"}\n' + GOOD)
    assert [len(text) for text in read_dataset(long)["text"]] == [10_000_000, 4]
    many.write_bytes(b'{"text": "a"}\n' * 30_000)
    assert len(read_dataset(many)) == 30_000


STUDENT = text_encoder(byte_level_bpe(vocab_size=330))
TEACHER = text_encoder(bytes_only())


def test_t03_bad_unicode_never_reaches_a_tokenizer():
    batch = PairCollator(STUDENT, TEACHER, max_length=64)([{"text": "a\udc80"}, {"text": "good"}])
    assert batch["skipped"][REASONS.index("bad_unicode")] == 1
    assert batch["student_bytes"].tolist() == [0, 4]


def test_t06_special_tokens_come_from_the_row_format_alone():
    text = "<|eos|><|bos|> stop <|eos|>"
    batch = PairCollator(STUDENT, TEACHER, max_length=64)([{"text": text}])
    for side, encoder in (("student", STUDENT), ("teacher", TEACHER)):
        ids = batch[f"{side}_input_ids"][0]
        assert encoder.bytes.special[ids].sum() == 1  # the end of text, put by us
        assert encoder.bytes.spell(ids) == text.encode()


def test_t09_both_sides_lose_the_same_bytes():
    text = "The cat \U0001f600 sat on the mat. " * 3
    for limit in range(12, 80, 7):
        batch = PairCollator(STUDENT, TEACHER, max_length=limit)([{"text": text}])
        kept = [
            encoder.bytes.spell(batch[f"{side}_input_ids"][0])
            for side, encoder in (("student", STUDENT), ("teacher", TEACHER))
        ]
        assert kept[0] == kept[1] == text.encode()[: len(kept[0])]
        assert batch["cut_bytes"] == len(text.encode()) - len(kept[0]) > 0
