"""The record of finished stages: what is entered, and what is refused."""

import json

import pytest

from crosstill.errors import CheckpointError
from crosstill.transfer.record import FORMAT_VERSION, RECORD, Record


@pytest.fixture
def record(tmp_path):
    """A record with one part, whose model is one file."""
    made = Record(tmp_path)
    folder = made.model_folder("0-initial")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"numbers")
    made.add("0-initial", {"to": "bytes", "steps": 3}, {"seconds": 1.5})
    return Record(tmp_path)


def test_what_was_entered_is_read_again(record):
    entry = record.entry("0-initial", {"to": "bytes", "steps": 3})
    assert entry is not None
    assert entry["seconds"] == 1.5
    assert record.check("0-initial") == record.model_folder("0-initial")
    assert record.entry("1-full", {}) is None


def test_differences_are_named(record):
    with pytest.raises(CheckpointError) as caught:
        record.entry("0-initial", {"to": "other", "steps": 3, "new": 1})
    assert "to: 'bytes' -> 'other'" in str(caught.value)
    assert "new: None -> 1" in str(caught.value)
    assert "steps" not in str(caught.value)


def test_a_stage_that_the_recipe_has_no_more_is_named(record):
    with pytest.raises(CheckpointError, match="finished 0-initial"):
        record.only("initial", "1-full")


@pytest.mark.parametrize("change", ["content", "size", "missing", "extra", "pickle"])
def test_a_model_that_changed_is_refused(record, change):
    file = record.model_folder("0-initial") / "model.safetensors"
    if change == "missing":
        file.unlink()
    elif change in ("extra", "pickle"):
        (file.parent / ("more.json" if change == "extra" else "more.bin")).write_bytes(b"")
    else:
        file.write_bytes(b"numberz" if change == "content" else b"more numbers")
    with pytest.raises(CheckpointError, match=str(file.parent)):
        record.check("0-initial")


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(CheckpointError, match="not the record of a transfer"):
        Record(tmp_path)


def test_a_record_of_a_newer_format_is_refused(tmp_path):
    (tmp_path / RECORD).write_text(json.dumps({"format_version": FORMAT_VERSION + 1, "parts": {}}))
    with pytest.raises(CheckpointError, match="Update crosstill"):
        Record(tmp_path)
