"""Arrays kept on disk: made once, checked when they are read, never half written."""

import logging

import numpy as np
import pytest

from crosstill.cache import cache_folder, cached_ids

IDS = np.array([3, -1, 2], np.int64)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CROSSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "maps"


def never():
    raise AssertionError("made again")


def test_the_folder_is_named_by_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CROSSTILL_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("CROSSTILL_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "crosstill"


def test_made_once(folder):
    assert cached_ids("map", 3, lambda: IDS).tolist() == IDS.tolist()
    again = cached_ids("map", 3, never)
    assert again.dtype == np.int64
    assert again.tolist() == IDS.tolist()
    assert [path.name for path in folder.iterdir()] == ["map.npy"]


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "flipped", "other size", "other type", "pickle"]
)
def test_a_damaged_file_is_made_again_with_a_warning(folder, damage, caplog):
    cached_ids("map", 3, lambda: IDS)
    path = folder / "map.npy"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif damage == "other size":
        np.save(path, np.arange(9))
    elif damage == "other type":
        np.save(path, np.ones(4, np.float32))
    else:
        np.save(path, np.array([{}], object), allow_pickle=True)
    with caplog.at_level(logging.WARNING):
        assert cached_ids("map", 3, lambda: IDS).tolist() == IDS.tolist()
    assert "damaged" in caplog.text
    assert str(path) in caplog.text
    assert cached_ids("map", 3, never).tolist() == IDS.tolist()


def test_a_folder_that_cannot_be_written_costs_time_alone(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CROSSTILL_CACHE", str(tmp_path / "file"))
    assert cached_ids("map", 3, lambda: IDS).tolist() == IDS.tolist()
    assert "CROSSTILL_CACHE" in caplog.text


def test_nothing_is_left_of_a_write_that_fails(folder, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    assert cached_ids("map", 3, lambda: IDS).tolist() == IDS.tolist()
    assert list(folder.iterdir()) == []
