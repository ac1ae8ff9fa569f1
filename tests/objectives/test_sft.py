"""The `sft` objective: cross entropy, and a gradient just where a label is."""

import torch

from objectives.batches import alone, whole


def test_equals_cross_entropy():
    case, batch, signal = whole(1, dtype=torch.float64)
    mix = alone("sft", case)
    loss = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    expected = torch.nn.functional.cross_entropy(
        case.logits[:, :-1].flatten(0, 1), case.labels[:, 1:].flatten(), ignore_index=-100
    )
    assert torch.allclose(loss.total, expected, rtol=1e-6)  # the divisor is float32


def test_the_gradient_is_at_the_row_before_each_label():
    case, batch, signal = whole(2)
    mix = alone("sft", case)
    logits = case.logits.clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
    (gradient,) = torch.autograd.grad(loss.total, logits)
    rows = {(b, t - 1) for b, t in (case.labels != -100).nonzero().tolist()}
    touched = {(b, t) for b, t in gradient.abs().sum(-1).nonzero().tolist()}
    assert touched == rows
