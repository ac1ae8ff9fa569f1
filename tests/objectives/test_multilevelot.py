"""The `multilevelot` objective: which rows it compares, and its options."""

import pytest
import torch

from crosstill.errors import ConfigError
from crosstill.objectives import create
from objectives.batches import alone, whole
from oracle import multilevelot as oracle


def given(seed, **options):
    case, batch, signal = whole(seed, dtype=torch.float64)
    mix = alone("multilevelot", case, **options)
    logits = case.logits.clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return case, batch, signal, loss, gradient


def answers(case, batch, signal):
    """Rows of logits that predict a supervised token, by sequence, of both sides."""
    teacher = signal.hidden @ signal.weight.t()
    return [
        [
            [logits[b, t - 1].tolist() for t in range(1, len(row)) if row[t] != -100]
            for b, row in enumerate(batch[f"{side}_labels"].tolist())
        ]
        for side, logits in (("student", case.logits), ("teacher", teacher))
    ]


def test_equals_the_oracle_on_a_batch():
    case, batch, signal, loss, _ = given(2, top_k=6, rounds=4, regularisation=0.2)
    student, teacher = answers(case, batch, signal)
    *parts, rows = oracle.parts(student, teacher, top_k=6, rounds=4, regularisation=0.2)
    expected = (parts[0] + 0.1 * parts[1] + 0.1 * parts[2]) / rows
    # the divisor is float32
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    assert loss.parts["multilevelot"].count == rows


def test_compatible_is_the_authors_value_with_the_rows_that_one_side_has_more():
    case, batch, signal, loss, gradient = given(2, top_k=6, compatible=True)
    sides = answers(case, batch, signal)
    kept = [b for b in range(len(case.labels)) if sides[0][b] and sides[1][b]]
    student, teacher = ([rows[b] for b in kept] for rows in sides)
    assert any(len(s) != len(t) for s, t in zip(student, teacher, strict=True))
    parts = oracle.compatible(student, teacher, top_k=6)
    expected = parts[0] + 0.1 * parts[1] + 0.1 * parts[2]
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    rows = {(b, t) for b in kept for t in (batch["student_labels"][b, 1:] != -100).nonzero()}
    assert (gradient.abs().sum(-1) > 0).sum() == len(rows)


def test_the_gradient_is_at_the_rows_that_are_compared():
    _, batch, _, _, gradient = given(3)
    expected = set()
    for b in range(len(batch["student_labels"])):
        student, teacher = (
            [t - 1 for t, x in enumerate(batch[f"{side}_labels"][b].tolist()) if x != -100 and t]
            for side in ("student", "teacher")
        )
        expected |= {(b, s) for s, _ in zip(student, teacher, strict=False)}
    assert {tuple(x) for x in gradient.abs().sum(-1).nonzero().tolist()} == expected


def test_options_reach_the_loss():
    _, _, _, plain, _ = given(4)
    options = {
        "top_k": 3, "log_weight": 0.5, "transport_weight": 0.5, "regularisation": 0.5,
        "rounds": 1, "compatible": True,
    }  # fmt: skip
    for key, value in options.items():
        assert not torch.allclose(given(4, **{key: value})[3].total, plain.total)


def test_training_on_it_brings_it_down():
    case, batch, signal = whole(6)
    mix = alone("multilevelot", case, top_k=8)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    values = []
    for _ in range(60):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        values.append(loss.parts["multilevelot"].sums["absolute"].item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"top_k": 0}, "top_k must be at least 1"), ({"regularisation": 0.0}, "above 0")],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("multilevelot", **options)
