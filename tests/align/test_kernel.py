"""The chunk kernel: small cases by hand, the compiled loops against numpy against the oracle."""

import os
import subprocess
import sys

import numpy as np
import pytest

from crosstill.align import compiled, kernel
from oracle.alignment import chunk_of_tokens, chunks_of_line


def run(student, teacher, function=kernel.chunk_ids):
    lines = [
        np.array([token[k] for token in side], np.int64)
        for side in (student, teacher)
        for k in (0, 1)
    ]
    student_chunk, teacher_chunk, n = function(*lines)
    assert student_chunk.dtype == teacher_chunk.dtype == np.int32
    return student_chunk.tolist(), teacher_chunk.tolist(), n


OUT = (-1, -1)

BY_HAND = {
    "one token each": ([(0, 3)], [(0, 3)], [0], [0], 1),
    "many to many": ([(0, 2), (2, 4)], [(0, 1), (1, 3), (3, 4)], [0, 0], [0, 0, 0], 1),
    "finest": ([(0, 1), (1, 2)], [(0, 1), (1, 2)], [0, 1], [0, 1], 2),
    "nothing": ([], [], [], [], 0),
    "one side empty": ([], [(0, 2)], [], [-1], 0),
    "outside tokens": ([OUT, (0, 2), OUT], [(0, 2), OUT], [-1, 0, -1], [0, -1], 1),
    "late start on one side": ([(2, 4), (4, 5)], [(0, 2), (2, 5)], [0, 0], [-1, 0], 1),
    "ends apart": ([(0, 2), (2, 5)], [(0, 2), (2, 4)], [0, -1], [0, -1], 1),
    "gap on one side inside": (
        [(0, 2), (5, 7), (7, 9)],
        [(0, 3), (3, 7), (7, 9)],
        [-1, -1, 0],
        [-1, -1, 0],
        1,
    ),
    "same gap on both sides": ([(0, 2), (4, 5)], [(0, 1), (1, 2), (4, 5)], [0, 1], [0, 0, 1], 2),
    "empty token goes to the next": (
        [(0, 0), (0, 2), (2, 2), (2, 3)],
        [(0, 2), (2, 3)],
        [0, 0, 1, 1],
        [0, 1],
        2,
    ),
    "empty token at the end": ([(0, 2), (2, 2)], [(0, 2)], [0, 0], [0], 1),
    "empty token inside": ([(0, 2), (2, 2), (2, 4)], [(0, 4)], [0, 0, 0], [0], 1),
    "empty token in no chunk": ([(0, 2), (2, 2), (2, 4)], [(1, 4)], [-1, -1, -1], [-1], 0),
    "empty tokens only": ([(0, 0)], [(0, 0)], [-1], [-1], 0),
}


@pytest.mark.parametrize("function", [kernel.chunk_ids_numpy, compiled.chunk_ids])
@pytest.mark.parametrize("name", BY_HAND)
def test_cases_by_hand(name, function):
    student, teacher, student_chunk, teacher_chunk, n = BY_HAND[name]
    assert run(student, teacher, function) == (student_chunk, teacher_chunk, n)
    chunks = chunks_of_line(student, teacher)
    assert chunk_of_tokens(student, chunks) == student_chunk
    assert chunk_of_tokens(teacher, chunks) == teacher_chunk
    assert len(chunks) == n


def test_any_integer_arrays_are_taken():
    student = np.array([[0, 2], [2, 4]], np.int32)
    teacher = np.array([[0, 4]], np.int16)
    found = kernel.chunk_ids(student[:, 0], student[:, 1], teacher[:, 0], teacher[:, 1])
    assert found[0].tolist() == [0, 0]
    assert found[2] == 1


def test_time_is_linear_in_tokens():
    """Doubles of 100,000 tokens: a quadratic method would need 80 GB here."""
    n = 100_000
    edges = np.arange(n + 1)
    start, end = edges[:-1], edges[1:]
    student_chunk, _, count = kernel.chunk_ids(start, end, start[::2], start[::2] + 2)
    assert count == n // 2
    assert (student_chunk == np.arange(n) // 2).all()


@pytest.mark.parametrize("function", [kernel.tiled_chunk_ids_numpy, compiled.tiled_chunk_ids])
def test_tiled_from_ids(function):
    lengths = np.array([0, 1, 2, 3], np.int32)
    # 1 + 2 + 3 bytes after a prefix space of its own, against 3 + 0 + 3 bytes
    student, teacher = np.array([1, 1, 2, 3]), np.array([3, 0, 3])
    student_chunk, teacher_chunk, n, *total = function(student, lengths, 1, teacher, lengths, 0)
    assert (student_chunk.tolist(), teacher_chunk.tolist(), n) == ([0, 0, 0, 1], [0, 1, 1], 2)
    assert total == [6, 6]


@pytest.mark.parametrize("function", [kernel.tiled_chunk_ids_numpy, compiled.tiled_chunk_ids])
def test_tiled_reports_what_either_side_spells(function):
    lengths = np.array([0, 1], np.int32)
    *_, student_bytes, teacher_bytes = function(
        np.array([1, 1]), lengths, 0, np.array([1]), lengths, 0
    )
    assert (student_bytes, teacher_bytes) == (2, 1)


@pytest.mark.parametrize("function", [kernel.tiled_chunk_ids_numpy, compiled.tiled_chunk_ids])
@pytest.mark.parametrize("id", [2, 1 << 30])
def test_tiled_reads_no_length_that_is_not_there(function, id):
    lengths, ids = np.array([0, 1], np.int32), np.array([1, id], np.uintc)
    with pytest.raises(IndexError):
        function(ids, lengths, 0, ids[:1], lengths, 0)


@pytest.mark.parametrize("function", [kernel.row_chunks_numpy, compiled.row_chunks])
def test_a_row_of_stretches(function):
    # "ab", nothing, "c" against "a", "b", nothing, "c"; the first stretch is cut by the second
    student, teacher = np.array([2, 2, 3]), np.array([1, 2, 2, 3])
    stretches = np.array([[0, 2, 0, 0, 0, 3, 0, 0, 0, 1], [1, 3, 1, 2, 2, 4, 2, 2, 0, 1]])
    *found, aligned = function(student, 3, teacher, 4, stretches)
    assert [array.tolist() for array in found] == [
        [0, 1, 1],
        [0, 0, 1, 1],
        [False, True],
        [False, False],
    ]
    assert aligned == 1


@pytest.mark.parametrize("function", [kernel.row_chunks_numpy, compiled.row_chunks])
def test_a_row_without_stretches(function):
    none = np.empty((0, 10), np.int64)
    *found, aligned = function(np.array([1]), 1, np.empty(0, np.int64), 0, none)
    assert [array.tolist() for array in found] == [[-1], [], [], []]
    assert aligned == 0


def test_import_is_cheap_and_needs_no_torch():
    code = (
        "import sys, crosstill.align.kernel as k; "
        "assert not {'torch', 'numba', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)


def test_works_without_numba(monkeypatch):
    kernel._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, "crosstill.align.compiled", None)
    monkeypatch.delattr("crosstill.align.compiled", raising=False)
    try:
        assert kernel._compiled() is None
        assert run([(0, 2)], [(0, 1), (1, 2)]) == ([0], [0, 0], 1)
    finally:
        kernel._compiled.cache_clear()
