"""What every objective owes, whoever wrote it: it passes here as soon as it is registered."""

import inspect
from dataclasses import fields

import pytest
import torch

from crosstill.functional import HeadMatrix
from crosstill.objectives import create, methods
from objectives.batches import alone, padded, rows_of, whole

NAMES = [method.name for method in methods()]
FUSABLE = [method.name for method in methods() if method.fusable]

pytestmark = pytest.mark.parametrize("name", NAMES)


def run(mix, logits, batch, signal, counts=None):
    """(loss, gradient of the logits)."""
    logits = logits.detach().clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, counts or mix.counts(batch, signal))
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return loss, gradient


def read_rows(name, batch):
    """Rows of logits that the objective may read: what it says it reads, and chunks' ends."""
    chunked = batch["student_chunk"] >= 0
    tokens = create(name).reads(batch)
    rows = torch.zeros_like(tokens)
    rows[:, :-1] = tokens[:, 1:]  # token t is predicted by row t - 1
    if "boundary" in create(name).needs:
        rows |= chunked
    return rows


def test_it_reads_supervised_tokens_alone(name):
    _, batch, _ = whole(0)
    tokens = create(name).reads(batch)
    assert tokens.any()
    assert not (tokens & (batch["student_labels"] == -100) & (batch["student_chunk"] < 0)).any()


def test_the_count_is_known_before_the_student_runs(name):
    case, batch, signal = whole(1)
    mix = alone(name, case)
    loss, _ = run(mix, case.logits, batch, signal)
    assert mix.counts(batch, signal)[name] == loss.parts[name].count > 0


def test_the_total_is_the_sum_over_the_global_count(name):
    case, batch, signal = whole(1)
    mix = alone(name, case)
    counts = {name: torch.tensor(40.0)}
    loss, _ = run(mix, case.logits, batch, signal, counts)
    assert torch.allclose(loss.total, loss.parts[name].total / 40)


def test_more_padding_changes_nothing(name):
    case, batch, signal = whole(2)
    mix = alone(name, case)
    loss, gradient = run(mix, case.logits, batch, signal)
    wider = padded(batch, signal, case.logits, 3)
    again, wide_gradient = run(mix, wider[2], wider[0], wider[1])
    assert torch.allclose(loss.total, again.total)
    assert loss.parts[name].count == again.parts[name].count
    assert torch.allclose(gradient, wide_gradient[:, : gradient.shape[1]], atol=1e-7)
    assert not wide_gradient[:, gradient.shape[1] :].any()


def test_the_order_of_rows_changes_nothing(name):
    case, batch, signal = whole(3, rows=4)
    mix = alone(name, case)
    order = torch.tensor([2, 0, 3, 1])
    loss, gradient = run(mix, case.logits, batch, signal)
    shuffled, other = run(mix, case.logits[order], *rows_of(batch, signal, order))
    assert torch.allclose(loss.total, shuffled.total)
    assert torch.allclose(gradient[order], other, atol=1e-7)


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2), (1, 1, 1, 1)], ids=str)
def test_accumulation_gives_the_gradient_of_the_whole(name, sizes):
    case, batch, signal = whole(4, rows=4, dtype=torch.float64)
    mix = alone(name, case)
    counts = mix.counts(batch, signal)
    whole_loss, expected = run(mix, case.logits, batch, signal, counts)
    start, total, count, gradient = 0, 0.0, 0.0, []
    for size in sizes:
        rows = torch.arange(start, start + size)
        part, part_gradient = run(
            mix, case.logits[rows], *rows_of(batch, signal, rows), counts=counts
        )
        total += part.total.item()
        count += part.parts[name].count.item()
        gradient.append(part_gradient)
        start += size
    assert total == pytest.approx(whole_loss.total.item(), rel=1e-12)
    assert count == counts[name].item()
    assert torch.allclose(torch.cat(gradient), expected, atol=1e-14)


@pytest.mark.parametrize("length", [1, 6])
def test_nothing_supervised_is_zero_with_a_graph_and_a_finite_gradient(name, length):
    case, batch, signal = whole(5, student=length, teacher=length)
    batch["student_labels"] = torch.full_like(case.labels, -100)
    batch["student_chunk"] = torch.full_like(case.student_chunk, -1)
    batch["teacher_chunk"] = torch.full_like(case.teacher_chunk, -1)
    mix = alone(name, case)
    loss, gradient = run(mix, case.logits, batch, signal)
    assert loss.total == loss.parts[name].total == loss.parts[name].count == 0
    assert mix.counts(batch, signal)[name] == 0
    assert not gradient.any()


@pytest.mark.parametrize("value", [-torch.inf, torch.nan], ids=["minus infinity", "nan"])
def test_what_stands_under_the_masks_has_no_effect(name, value):
    case, batch, signal = whole(6)
    mix = alone(name, case)
    loss, gradient = run(mix, case.logits, batch, signal)
    rows = read_rows(name, batch)
    dirty = case.logits.masked_fill(~rows.unsqueeze(-1), value)
    again, dirty_gradient = run(mix, dirty, batch, signal)
    assert torch.equal(loss.total, again.total)
    assert torch.equal(gradient, dirty_gradient)


def test_only_supervised_rows_get_a_gradient(name):
    case, batch, signal = whole(7)
    _, gradient = run(alone(name, case), case.logits, batch, signal)
    rows = read_rows(name, batch)
    assert gradient[rows].any()
    assert not gradient[~rows].any()


def test_an_impossible_token_gives_a_finite_loss(name):
    case, batch, signal = whole(8)
    logits = case.logits.clone()
    logits[0, :, case.student_ids[0, 2:6]] = -torch.inf
    loss, gradient = run(alone(name, case), logits, batch, signal)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_bfloat16_logits_are_as_good_as_they_can_be(name):
    case, batch, signal = whole(9)
    mix = alone(name, case)
    low = case.logits.bfloat16()
    loss, gradient = run(mix, low, batch, signal)
    exact, _ = run(mix, low.double(), batch, signal)
    assert loss.total.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-4)


def test_nothing_that_was_given_is_changed_and_twice_is_the_same(name):
    case, batch, signal = whole(10)
    before = {key: value.clone() for key, value in batch.items()}
    kept = (case.logits.clone(), signal.logprob.clone(), signal.boundary.clone())
    mix = alone(name, case)
    first, one = run(mix, case.logits, batch, signal)
    second, two = run(mix, case.logits, batch, signal)
    assert torch.equal(first.total, second.total)
    assert torch.equal(one, two)
    assert set(batch) == set(before)
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept, (case.logits, signal.logprob, signal.boundary), strict=True)
    )


def test_what_is_reported_has_no_graph(name):
    case, batch, signal = whole(11)
    loss, _ = run(alone(name, case), case.logits, batch, signal)
    for total, count in loss.metrics().values():
        assert not total.requires_grad
        assert not count.requires_grad
    assert loss.total.requires_grad


def test_it_says_what_it_is(name):
    info = next(method for method in methods() if method.name == name)
    objective = type(create(name))
    assert info.paper
    assert info.cost
    assert info.choose
    assert set(info.needs) <= {"token_logprob", "boundary", "top_k", "logits", "hidden"}
    assert inspect.getdoc(objective)
    for option, field in zip(info.options, fields(objective.options_type), strict=True):
        assert option.help
        assert getattr(create(name).options, field.name) == option.default


def test_the_fused_form_is_equal(name):
    if name not in FUSABLE:
        pytest.skip(f"{name} has no fused form")
    case, batch, signal = whole(12, dtype=torch.float64)
    mix = alone(name, case)
    counts = mix.counts(batch, signal)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    plain = mix.from_logits(hidden @ weight.t(), batch, signal, counts)
    fused = mix.from_hidden(hidden, HeadMatrix(weight), batch, signal, counts)
    assert torch.allclose(plain.total, fused.total, rtol=1e-12)
    expected = torch.autograd.grad(plain.total, [hidden, weight])
    got = torch.autograd.grad(fused.total, [hidden, weight])
    for one, two in zip(expected, got, strict=True):
        assert torch.allclose(one, two, atol=1e-12)
    assert plain.metrics().keys() == fused.metrics().keys()
    for key, values in plain.metrics().items():
        assert torch.allclose(torch.stack(values), torch.stack(fused.metrics()[key]))
