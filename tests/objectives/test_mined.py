"""The `mined` objective: its rows, its map, and what it does with the other tokens."""

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.losses import supervised_tokens
from crosstill.functional.mined import one_hot_loss
from crosstill.objectives import Mix, ModelFacts, Pair, create
from objectives.batches import alone, student_of, toy_pair, whole


def run(mix, case, batch, signal):
    logits = case.logits.clone().requires_grad_()
    counts = mix.counts(batch, signal)
    loss = mix.from_logits(logits, batch, signal, {"mined": torch.tensor(1.0)})
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert counts["mined"] == loss.parts["mined"].count
    return loss, {tuple(x) for x in gradient.abs().sum(-1).nonzero().tolist()}


def by_hand(case, batch, signal, **options):
    rows = F.chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    token_map = torch.from_numpy(toy_pair(case).vocabulary.mined().copy())
    return rows, F.mined_loss(
        case.logits[rows.batch, rows.student_row],
        signal.rows(rows.batch, rows.teacher_row),
        token_map,
        **options,
    )


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 2.0}, {"merge": "max"}, {"merge": "first"}]
)
def test_rows_before_chunks_are_compared_by_the_map(options):
    case, batch, signal = whole(1, dtype=torch.float64)
    loss, touched = run(alone("mined", case, **options), case, batch, signal)
    rows, expected = by_hand(case, batch, signal, **options)
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-12)
    assert touched == set(zip(rows.batch.tolist(), rows.student_row.tolist(), strict=True))
    plain = by_hand(case, batch, signal)[1]
    assert bool(options) == (not torch.allclose(plain.total, loss.total))


def test_one_hot_teaches_the_text_where_no_row_of_the_teacher_reaches():
    case, batch, signal = whole(2, dtype=torch.float64)
    loss, touched = run(
        alone("mined", case, fallback="one_hot", temperature=2.0), case, batch, signal
    )
    rows, expected = by_hand(case, batch, signal, temperature=2.0)
    first = set(zip(rows.batch.tolist(), (rows.student_row + 1).tolist(), strict=True))
    taught = {tuple(x) for x in supervised_tokens(batch["student_labels"]).nonzero().tolist()}
    others = sorted(taught - first)
    assert others
    rest = one_hot_loss(
        torch.stack([case.logits[b, t - 1] for b, t in others]),
        torch.stack([batch["student_input_ids"][b, t] for b, t in others]),
        temperature=2.0,
    )
    assert loss.total.item() == pytest.approx((expected.total + rest.total).item(), rel=1e-12)
    assert loss.parts["mined"].count == len(rows.batch) + len(others)
    assert touched == {(b, t - 1) for b, t in {*first, *others}}


@pytest.mark.parametrize("fallback", ["skip", "one_hot"])
def test_what_is_skipped_is_counted(fallback):
    case, batch, signal = whole(3)
    loss, _ = run(alone("mined", case, fallback=fallback), case, batch, signal)
    inside, count = loss.metrics()["mined/inside"]
    rows, _ = by_hand(case, batch, signal)
    first = set(zip(rows.batch.tolist(), (rows.student_row + 1).tolist(), strict=True))
    taught = {tuple(x) for x in supervised_tokens(batch["student_labels"]).nonzero().tolist()}
    assert inside == len(taught - first) > 0
    assert count == loss.parts["mined"].count


def test_surplus_ids_of_either_side_have_no_part_in_the_map():
    case, _, _ = whole(4)
    whole_pair = toy_pair(case)
    full = whole_pair.vocabulary.mined()
    student, teacher = (
        ModelFacts(size, one.hidden_size, 2, one.input_embedding, one.head)
        for size, one in ((9, whole_pair.student), (12, whole_pair.teacher))
    )
    objective = create("mined")
    objective.prepare(Pair(whole_pair.vocabulary, student, teacher))
    assert objective._map.tolist() == [s if s < 9 else -1 for s in full[:12]]


def test_it_must_be_prepared():
    case, batch, signal = whole(5)
    mix = Mix({"mined": (create("mined"), 1.0)}, boundary_mask=case.mask)
    with pytest.raises(ConfigError, match="prepare"):
        mix.from_logits(student_of(case).logits, batch, signal, {"mined": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fallback": "gold"}, "fallback must be one of skip, one_hot"),
        ({"merge": "mean"}, "merge"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_faults_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        create("mined", **options)
