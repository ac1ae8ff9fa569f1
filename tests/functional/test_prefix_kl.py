"""Prefix KL against brute force, and what must hold of it."""

import numpy as np
import pytest
import torch

from crosstill.functional.prefix_kl import prefix_rows_loss
from crosstill.functional.prefix_plan import plan_prefixes
from crosstill.objectives.prefix_kl import make_tables
from objectives.batches import STUDENT_TOKENS, TEACHER_TOKENS, ToyVocabularies, _spell
from oracle.prefix_kl import PrefixKl

PAIRS = {
    "student shorter": (STUDENT_TOKENS, TEACHER_TOKENS),
    "student longer": (TEACHER_TOKENS, STUDENT_TOKENS),
    "one vocabulary": (STUDENT_TOKENS, STUDENT_TOKENS),
    "bytes": (STUDENT_TOKENS[:5], TEACHER_TOKENS),
    "teacher of bytes": (TEACHER_TOKENS, STUDENT_TOKENS[:5]),
}


def case(pair, seed, length=24, dtype=torch.float64):
    """One random text in both vocabularies: tables, tensors and an oracle."""
    student, teacher = PAIRS[pair]
    vocabulary = ToyVocabularies(student, teacher)
    rng = np.random.default_rng(seed)
    text = bytes(rng.choice([97, 98, 99, 32], length).tolist())
    ids = [[0, *_spell(text, tokens)] for tokens in (student, teacher)]
    ends = [np.cumsum([len(tokens[i]) for i in side])
            for side, tokens in zip(ids, (student, teacher), strict=True)]  # fmt: skip
    common = sorted(set(ends[0][1:]) & set(ends[1][1:]))
    chunk = [np.searchsorted(common, side) for side in ends]
    for side in chunk:
        side[0] = -1
    skipped = rng.integers(0, len(common))  # a gap in what is supervised
    chunk = [np.where(side == skipped, -1, side - (side > skipped)) for side in chunk]
    logits = [torch.tensor(rng.normal(0, 2, (len(side), len(tokens))), dtype=dtype)
              for side, tokens in zip(ids, (student, teacher), strict=True)]  # fmt: skip
    spelled = [[tuple(_spell(token, other)) for token in own]
               for own, other in ((teacher, student), (student, teacher))]  # fmt: skip
    lengths = [[len(token) for token in tokens] for tokens in (student, teacher)]
    oracle = PrefixKl(*spelled, *lengths)
    return make_tables(vocabulary), ids, chunk, logits, oracle


def loss_of(tables, ids, chunk, logits, chunks=3, **options):
    ids = [torch.tensor([side]) for side in ids]
    chunk = [torch.tensor(side)[None].long() for side in chunk]
    plan = plan_prefixes(*ids, torch.ones_like(ids[1]), *chunk, tables)
    parts = [
        prefix_rows_loss(
            logits[0][block.student[1]], logits[1][block.teacher[1]], block, tables, **options
        )
        for block in plan.blocks(chunks)
    ]
    return sum(part.total for part in parts), sum(part.count for part in parts), len(plan)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("pair", PAIRS)
def test_equal_to_brute_force(pair, seed):
    tables, ids, chunk, logits, oracle = case(pair, seed)
    total, count, planned = loss_of(tables, ids, chunk, logits)
    expected, rows = oracle.run(*(side.numpy() for side in logits), *ids, *chunk)
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count == planned == rows
