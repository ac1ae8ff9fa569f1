"""CDM on real tokenizers: path, groups, rate and map equal the plain re-statement."""

import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from crosstill.align.candidates import CandidateMap
from crosstill.align.dtw import dtw_path, entropy_weights, token_distances
from crosstill.align.groups import matched, path_groups
from crosstill.align.spellings import pieces
from crosstill.align.symbols import byte_strings, character_strings, symbol_table, with_specials
from crosstill.align.vocab import VocabularyPair
from crosstill.text.encode import text_encoder
from oracle import cdm as oracle
from oracle import dtw
from real.tokenizers import real_tokenizer

PAIRS = [("qwen3", "llama3"), ("llama2", "qwen3")]
ENGLISH = (
    "The committee will meet again on Thursday, 14 March, to consider whether the harbour's "
    "breakwater needs rebuilding; engineers estimate the cost at 3.5 million. "
) * 3
MIXED = "Тёплый вечер. 東京は雨です。 مرحبا 12,345 naïve façade 👍🏽 ภาษาไทย " * 2


@cache
def code():
    folder = Path(sysconfig.get_paths()["stdlib"])
    return (folder / "bisect.py").read_text(encoding="utf-8")[:900]


TEXTS = {"English": lambda: ENGLISH, "code": code, "mixed": lambda: MIXED}


@cache
def vocabularies(names):
    pair = VocabularyPair(*(text_encoder(real_tokenizer(name)) for name in names))
    tables = pair.student_bytes, pair.teacher_bytes
    tokens = [pieces(table) for table in tables]
    plain = [byte_strings(side) for side in tokens]
    spelled = with_specials(*plain, *(table.special for table in tables), pair.shared())
    return pair, spelled, [character_strings(side) for side in tokens]


def ids_of(names, text):
    return [np.array(text_encoder(real_tokenizer(name)).encode(text)) for name in names]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_path_groups_and_rate_equal_the_restatement(names, kind):
    _, (student_names, teacher_names), _ = vocabularies(names)
    student, teacher = ids_of(names, TEXTS[kind]())
    texts = [teacher_names[id] for id in teacher], [student_names[id] for id in student]
    rng = np.random.default_rng(0)
    entropies = [rng.gamma(2.0, 1.5, len(side)) for side in texts]
    weights = [entropy_weights(side) for side in entropies]
    path = dtw_path(token_distances(*texts), *weights)
    steps, cost = dtw.path(*texts, *(dtw.weights(side.tolist()) for side in entropies))
    assert list(zip(path.teacher.tolist(), path.student.tolist(), strict=True)) == steps
    assert path.cost == pytest.approx(cost, rel=1e-12)
    groups = path_groups(path)
    same = matched(groups, teacher, student, symbol_table(student_names, teacher_names))
    expected = [
        "".join(texts[0][i] for i in sorted(one)) == "".join(texts[1][j] for j in sorted(two))
        for one, two in zip(*dtw.groups(steps), strict=True)
    ]
    assert same.tolist() == expected
    if kind == "English":
        assert same.mean() > 0.8  # what the paper reports


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_the_map_of_random_tokens_equals_the_restatement(names):
    pair, _, (student, teacher) = vocabularies(names)
    shared = pair.shared()
    maps = CandidateMap(student, teacher, shared, 0.3)
    rng = np.random.default_rng(1)
    tops = [np.stack([rng.permutation(len(side))[:40] for _ in range(6)])
            for side in (student, teacher)]  # fmt: skip
    # And tokens that are near one another: those that begin with the same letters.
    for at, start in enumerate(("int", " con")):
        for side, names_of in enumerate((student, teacher)):
            near = [id for id, name in enumerate(names_of) if name.startswith(start)][:40]
            tops[side][at, : len(near)] = near
            rest = np.setdiff1d(np.arange(1000, 2000), near)[: 40 - len(near)]
            tops[side][at, len(near) :] = rest
    found, plain = maps(*tops), maps.plain(*tops)
    total = 0
    for g in range(6):
        one, two = tops[0][g].tolist(), tops[1][g].tolist()
        expected, covered = oracle.mapping(one, two, student, teacher, shared, 0.3)
        count = found.count[g]
        pairs = found.student_ids[g, :count].tolist(), found.teacher_ids[g, :count].tolist()
        assert set(zip(*pairs, strict=True)) == expected
        assert found.covered[g].tolist() == list(covered)
        total += len(expected)
    assert np.array_equal(found.student_ids, plain.student_ids)
    assert np.array_equal(found.teacher_ids, plain.teacher_ids)
    assert total > 0
