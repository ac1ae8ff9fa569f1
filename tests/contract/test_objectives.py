"""What every objective owes, whoever wrote it: it passes here as soon as it is registered.

An objective may name tests that it need not pass, with a reason (`Objective.exempt`).
"""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from crosstill.functional import HeadMatrix
from crosstill.objectives import create, methods
from objectives.batches import alone, padded, rows_of, student_of, whole, wider

NAMES = [method.name for method in methods()]

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _exempt(request, name):
    reason = create(name).exempt.get(request.node.originalname)
    if reason:
        pytest.skip(f"{name}: {reason}")


def given(name, seed, **shape):
    """(mix, case, student, batch, signal) of one objective."""
    case, batch, signal = whole(seed, same=create(name).one_vocabulary, **shape)
    return alone(name, case), case, student_of(case), batch, signal


def run(mix, student, batch, signal, counts=None):
    """(loss, gradients of the logits and of each hidden state)."""
    student = student.changed(lambda values: values.detach().clone().requires_grad_())
    counts = counts or mix.counts(batch, signal)
    loss = mix.from_logits(student.logits, batch, signal, counts, states=student.kept())
    gradients = torch.autograd.grad(loss.total, student.tensors(), allow_unused=True)
    found = [
        torch.zeros_like(values) if gradient is None else gradient
        for gradient, values in zip(gradients, student.tensors(), strict=True)
    ]
    return loss, found


def pairwise(one, two):
    return zip(one, two, strict=True)


def read_rows(name, batch):
    """Rows that the objective may read: those it says it reads, and what its kind adds to them."""
    chunked = batch["student_chunk"] >= 0
    tokens = create(name).reads(batch)
    rows = torch.zeros_like(tokens)
    rows[:, :-1] = tokens[:, 1:]  # token t is predicted by row t - 1
    if "boundary" in create(name).needs or create(name).keeps_hidden:
        rows |= chunked
    return rows


def test_it_reads_supervised_tokens_alone(name):
    _, _, _, batch, _ = given(name, 0)
    tokens = create(name).reads(batch)
    assert tokens.any()
    assert not (tokens & (batch["student_labels"] == -100) & (batch["student_chunk"] < 0)).any()


def test_the_count_is_known_before_the_student_runs(name):
    mix, _, student, batch, signal = given(name, 1)
    loss, _ = run(mix, student, batch, signal)
    assert mix.counts(batch, signal)[name] == loss.parts[name].count > 0


def test_the_total_is_the_sum_over_the_global_count(name):
    mix, _, student, batch, signal = given(name, 1)
    loss, _ = run(mix, student, batch, signal, {name: torch.tensor(40.0)})
    assert torch.allclose(loss.total, loss.parts[name].total / 40)


def test_more_padding_changes_nothing(name):
    mix, _, student, batch, signal = given(name, 2)
    loss, gradients = run(mix, student, batch, signal)
    wide, wide_gradients = run(mix, student.changed(wider(3)), *padded(batch, signal, 3))
    assert torch.allclose(loss.total, wide.total)
    assert loss.parts[name].count == wide.parts[name].count
    for gradient, other in pairwise(gradients, wide_gradients):
        assert torch.allclose(gradient, other[:, : gradient.shape[1]], atol=1e-7)
        assert not other[:, gradient.shape[1] :].any()


def test_the_order_of_rows_changes_nothing(name):
    mix, _, student, batch, signal = given(name, 3, rows=4)
    order = torch.tensor([2, 0, 3, 1])
    loss, gradients = run(mix, student, batch, signal)
    shuffled, others = run(
        mix, student.changed(lambda values: values[order]), *rows_of(batch, signal, order)
    )
    assert torch.allclose(loss.total, shuffled.total)
    for gradient, other in pairwise(gradients, others):
        assert torch.allclose(gradient[order], other, atol=1e-7)


@pytest.mark.parametrize("sizes", [(4,), (1, 3), (2, 2), (1, 1, 1, 1)], ids=str)
def test_accumulation_gives_the_gradient_of_the_whole(name, sizes):
    mix, _, student, batch, signal = given(name, 4, rows=4, dtype=torch.float64)
    counts = mix.counts(batch, signal)
    whole_loss, expected = run(mix, student, batch, signal, counts)
    start, total, count, found = 0, 0.0, 0.0, []
    for size in sizes:
        rows = torch.arange(start, start + size)
        part, gradients = run(
            mix,
            student.changed(lambda values, rows=rows: values[rows]),
            *rows_of(batch, signal, rows),
            counts=counts,
        )
        total += part.total.item()
        count += part.parts[name].count.item()
        found.append(gradients)
        start += size
    assert total == pytest.approx(whole_loss.total.item(), rel=1e-12)
    assert count == counts[name].item()
    for gradient, parts in pairwise(expected, zip(*found, strict=True)):
        assert torch.allclose(torch.cat(parts), gradient, atol=1e-12)


@pytest.mark.parametrize("length", [1, 6])
def test_nothing_supervised_is_zero_with_a_graph_and_a_finite_gradient(name, length):
    mix, _, student, batch, signal = given(name, 5, student=length, teacher=length)
    for side in ("student", "teacher"):
        batch[f"{side}_labels"] = torch.full_like(batch[f"{side}_labels"], -100)
        batch[f"{side}_chunk"] = torch.full_like(batch[f"{side}_chunk"], -1)
    loss, gradients = run(mix, student, batch, signal)
    assert loss.total == loss.parts[name].total == loss.parts[name].count == 0
    assert mix.counts(batch, signal)[name] == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("value", [-torch.inf, torch.nan], ids=["minus infinity", "nan"])
def test_what_stands_under_the_masks_has_no_effect(name, value):
    mix, _, student, batch, signal = given(name, 6)
    loss, gradients = run(mix, student, batch, signal)
    hidden = ~read_rows(name, batch).unsqueeze(-1)
    dirty = student.changed(lambda values: values.masked_fill(hidden, value))
    again, dirty_gradients = run(mix, dirty, batch, signal)
    assert torch.equal(loss.total, again.total)
    for gradient, other in pairwise(gradients, dirty_gradients):
        assert torch.equal(gradient, other)


def test_only_supervised_rows_get_a_gradient(name):
    mix, _, student, batch, signal = given(name, 7)
    _, gradients = run(mix, student, batch, signal)
    rows = read_rows(name, batch)
    assert any(gradient[rows].any() for gradient in gradients)
    assert not any(gradient[~rows].any() for gradient in gradients)


def test_an_impossible_token_gives_a_finite_loss(name):
    mix, case, student, batch, signal = given(name, 8)
    student.logits[0, :, case.student_ids[0, 2:6]] = -torch.inf
    loss, gradients = run(mix, student, batch, signal)
    assert loss.total.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_bfloat16_is_as_good_as_it_can_be(name):
    mix, _, student, batch, signal = given(name, 9)
    low = student.changed(lambda values: values.bfloat16())
    loss, gradients = run(mix, low, batch, signal)
    exact, _ = run(mix, low.changed(lambda values: values.double()), batch, signal)
    assert loss.total.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-4)


def test_nothing_that_was_given_is_changed_and_twice_is_the_same(name):
    mix, _, student, batch, signal = given(name, 10)
    before = {key: value.clone() for key, value in batch.items()}
    kept = [values.clone() for values in [*student.tensors(), *signal.tensors()]]
    first, one = run(mix, student, batch, signal)
    second, two = run(mix, student, batch, signal)
    assert torch.equal(first.total, second.total)
    assert all(torch.equal(a, b) for a, b in pairwise(one, two))
    assert set(batch) == set(before)
    assert all(torch.equal(batch[key], before[key]) for key in before)
    now = [*student.tensors(), *signal.tensors()]
    assert all(torch.equal(a, b) for a, b in pairwise(kept, now))


def test_what_is_reported_has_no_graph(name):
    mix, _, student, batch, signal = given(name, 11)
    loss, _ = run(mix, student, batch, signal)
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
    assert all(f"def {test}(" in inspect.getsource(inspect.getmodule(given))
               for test in objective.exempt)  # fmt: skip
    for option, field in zip(info.options, fields(objective.options_type), strict=True):
        assert option.help
        assert getattr(create(name).options, field.name) == option.default


def test_its_page_says_what_it_need_not_pass(name):
    pages = Path(__file__).parents[2] / "docs" / "methods"
    page = pages / (f"{name}.md" if not create(name).one_vocabulary else "classical.md")
    text = " ".join(page.read_text(encoding="utf-8").split())
    for test, reason in create(name).exempt.items():
        assert test in text
        assert reason in text
    assert f"`{name}`" in (pages / "index.md").read_text(encoding="utf-8")


def test_the_fused_form_is_equal(name):
    if not (create(name).fusable or create(name).row_fusable):
        pytest.skip(f"{name} has no fused form")
    mix, case, _, batch, signal = given(name, 12, dtype=torch.float64)
    counts = mix.counts(batch, signal)
    hidden, weight = case.hidden.requires_grad_(), case.weight.requires_grad_()
    plain = mix.from_logits(hidden @ weight.t(), batch, signal, counts)
    fused = mix.from_hidden(hidden, HeadMatrix(weight), batch, signal, counts)
    assert torch.allclose(plain.total, fused.total, rtol=1e-12)
    expected = torch.autograd.grad(plain.total, [hidden, weight])
    got = torch.autograd.grad(fused.total, [hidden, weight])
    for one, two in pairwise(expected, got):
        assert torch.allclose(one, two, atol=1e-12)
    assert plain.metrics().keys() == fused.metrics().keys()
    for key, values in plain.metrics().items():
        assert torch.allclose(torch.stack(values), torch.stack(fused.metrics()[key]))
