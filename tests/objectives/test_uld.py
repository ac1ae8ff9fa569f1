"""The `uld` objective: which rows it compares, and its options."""

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from objectives.batches import alone, padded, student_of, whole


def loss_of(mix, case, batch, signal):
    logits = case.logits.clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, {"uld": torch.tensor(1.0)})
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return loss, gradient


def test_rows_are_those_that_predict_the_kth_answer_token():
    case, batch, signal = whole(2, dtype=torch.float64)
    loss, gradient = loss_of(alone("uld", case), case, batch, signal)
    total, touched = 0.0, set()
    for b in range(len(case.labels)):
        student = [t - 1 for t in range(1, case.labels.shape[1]) if case.labels[b, t] != -100]
        labels = batch["teacher_labels"][b]
        teacher = [t - 1 for t in range(1, len(labels)) if labels[t] != -100]
        for s, t in zip(student, teacher, strict=False):
            rows = torch.tensor([b]), torch.tensor([t])
            total += F.uld_loss(case.logits[b, s : s + 1], signal.rows(*rows)).total.item()
            touched.add((b, s))
    assert loss.total.item() == pytest.approx(total)
    assert {tuple(x) for x in gradient.abs().sum(-1).nonzero().tolist()} == touched


def test_bytes_compares_the_rows_at_the_beginning_of_chunks():
    case, batch, signal = whole(3, dtype=torch.float64)
    mix = alone("uld", case, alignment="bytes")
    loss, gradient = loss_of(mix, case, batch, signal)
    rows = F.chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    expected = F.uld_loss(
        case.logits[rows.batch, rows.student_row], signal.rows(rows.batch, rows.teacher_row)
    )
    assert torch.allclose(loss.total, expected.total)
    assert mix.counts(batch, signal)["uld"] == expected.count > 0
    touched = {tuple(x) for x in gradient.abs().sum(-1).nonzero().tolist()}
    assert touched == set(zip(rows.batch.tolist(), rows.student_row.tolist(), strict=True))


def test_options_reach_the_loss():
    case, batch, signal = whole(4, dtype=torch.float64)
    plain, _ = loss_of(alone("uld", case), case, batch, signal)
    options = {"student_temperature": 2.0, "teacher_temperature": 3.0, "top_k": 4}
    for key, value in options.items():
        other, _ = loss_of(alone("uld", case, **{key: value}), case, batch, signal)
        assert not torch.allclose(other.total, plain.total)
    bound, count = other.metrics()["uld/error_bound"]
    assert plain.total - other.total <= bound
    assert count == other.parts["uld"].count


def test_padding_and_prompt_get_no_gradient():
    case, batch, signal = whole(5)
    batch["student_labels"][:, :5] = -100  # a prompt
    loss, gradient = loss_of(alone("uld", case), case, batch, signal)
    assert not gradient[:, :4].any()
    batch_wide, signal_wide = padded(batch, signal, 100)
    student = student_of(case).changed(wider_states(100))
    again = alone("uld", case).from_logits(
        student.logits, batch_wide, signal_wide, {"uld": torch.tensor(1.0)}
    )
    assert torch.allclose(loss.total, again.total)


def wider_states(extra):
    def widen(values):
        return torch.nn.functional.pad(values, (0, 0, 0, extra), value=float("-inf"))

    return widen


def test_training_on_it_brings_the_distance_down():
    case, batch, signal = whole(6)
    mix = alone("uld", case)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    values = []
    for _ in range(60):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        values.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_temperature": 0.0}, "student_temperature must be above 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature must be above 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"alignment": "dtw"}, "position, bytes"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("uld", **options)
