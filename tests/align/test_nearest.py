"""The nearest strings: the same as by plain loops, whatever the strings."""

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from crosstill.align.nearest import nearest
from crosstill.align.spellings import lowest_ids, pieces
from crosstill.errors import ConfigError
from crosstill.text.encode import text_encoder
from oracle import edits
from real.tokenizers import real_tokenizer

words = st.binary(min_size=1, max_size=9) | st.text("ab é", min_size=1, max_size=9).map(str.encode)


def test_the_oracle_counts_edits():
    assert edits.distance(b"kitten", b"sitting") == 3
    assert edits.distance(b"", b"abc") == 3
    assert edits.distance(b"abc", b"abc") == 0


@given(st.lists(words, min_size=1, max_size=8), st.sets(words, min_size=1, max_size=12), st.data())
def test_equal_to_plain_loops(queries, candidates, data):
    ids = data.draw(st.permutations(range(len(candidates))))
    table = dict(zip(sorted(candidates), ids, strict=True))
    assert nearest(queries, table).tolist() == [edits.nearest(q, table) for q in queries]


@given(
    st.lists(st.binary(min_size=40, max_size=200), min_size=1, max_size=3),
    st.sets(st.binary(min_size=1, max_size=150), min_size=1, max_size=4),
)
@example([b"a" * 64 + b"b", b"a" * 64], {b"a" * 63, b"a" * 66 + b"b", b"b" + b"a" * 64})
@example([bytes(range(256)) * 2], {b"\0", b"\xff\xfe"})
@example([b"x" * 400], {b"x", b"y" * 400})
def test_long_strings_too(queries, candidates):
    table = {text: id for id, text in enumerate(sorted(candidates))}
    assert nearest(queries, table).tolist() == [edits.nearest(q, table) for q in queries]


@given(
    st.binary(min_size=60, max_size=140),
    st.lists(st.tuples(st.integers(0, 139), st.integers(0, 255)), max_size=6),
)
def test_few_edits_in_long_strings(text, changes):
    """Words of 64 bits and their carries: candidates a few edits away from a long query."""
    changed = bytearray(text)
    for place, byte in changes:
        changed[place % len(changed)] = byte
        if byte % 3 == 0:
            del changed[place % len(changed)]
    table = {bytes(changed): 0, text[5:]: 1, text[:-7] + b"zz": 2, b"z": 3}
    assert nearest([text], table).tolist() == [edits.nearest(text, table)]


def test_many_blocks_of_one_length():
    rng = random.Random(1)
    table = {bytes(rng.choices(b"abcd", k=rng.choice((5, 6)))): i for i in range(2000)}
    queries = [bytes(rng.choices(b"abcdef", k=rng.choice((4, 5, 8)))) for _ in range(60)]
    assert nearest(queries, table).tolist() == [edits.nearest(q, table) for q in queries]


def test_the_lowest_id_wins_at_any_distance():
    assert nearest([b"abc"], {b"abd": 5, b"bbc": 2, b"ab": 9}).tolist() == [2]
    assert nearest([b"aaaa"], {b"bbaa": 5, b"aabb": 2, b"aacc": 9}).tolist() == [2]
    assert nearest([b"ab"], {b"wxyz": 7, b"qrst": 3}).tolist() == [3]
    assert nearest([b"abc"], {b"abc": 9, b"abd": 1}).tolist() == [9]


def test_the_same_without_numba(monkeypatch):
    rng = random.Random(2)
    table = {bytes(rng.choices(b"abcd", k=rng.choice((2, 5, 6)))): i for i in range(200)}
    queries = [bytes(rng.choices(b"abcdef", k=rng.choice((3, 5, 90)))) for _ in range(20)]
    expected = nearest(queries, table).tolist()
    monkeypatch.setattr("crosstill.align.nearest._compiled", lambda: None)
    assert nearest(queries, table).tolist() == expected


def test_nothing_asked_nothing_found():
    assert nearest([], {}).shape == (0,)
    for queries, candidates in (([b"a"], {}), ([b""], {b"a": 1})):
        with pytest.raises(ConfigError, match="at least one byte"):
            nearest(queries, candidates)


def test_progress_is_shown_only_when_it_takes_long(capfd, monkeypatch):
    nearest([b"abcdef"], {b"xyz": 1})
    assert capfd.readouterr().err == ""
    monkeypatch.setattr("crosstill.align.nearest._QUIET_SECONDS", 0)
    nearest([b"abcdef"], {b"xyz": 1})
    assert "nearest tokens" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("llama3", "gemma3"), ("gemma3", "llama3")], ids=" <- ".join)
def test_real_vocabularies_equal_brute_force(pair):
    student, teacher = (text_encoder(real_tokenizer(name)) for name in pair)
    table = lowest_ids(student)
    texts = sorted(table, key=table.__getitem__)
    misses = [data for data in pieces(teacher.bytes) if data and data not in table]
    queries = random.Random(0).sample(misses, 200)
    found = nearest(queries, table)
    for k in range(0, 200, 20):
        part = cdist(queries[k : k + 20], texts, scorer=Levenshtein.distance, dtype=np.uint16)
        assert found[k : k + 20].tolist() == [table[texts[c]] for c in part.argmin(axis=1)]
