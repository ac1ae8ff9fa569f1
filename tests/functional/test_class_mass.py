"""Masses of classes against plain sums of a softmax, compiled and not."""

import pytest
import torch

from crosstill.functional import class_mass as module
from crosstill.functional.class_mass import Classes, class_mass


def case(seed, dtype):
    """Random logits, classes (one of them empty) and single tokens, some named twice."""
    draw = torch.Generator().manual_seed(seed)
    rows, width, count = 5, 37, 9
    logits = torch.randn(rows, width, generator=draw, dtype=torch.float64).to(dtype) * 3
    of = torch.randint(0, count - 1, (width,), generator=draw)
    row = torch.randint(0, rows, (11,), generator=draw)
    id = torch.randint(0, width, (11,), generator=draw)
    weights = [torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)
               for shape in ((rows, count), (11,))]  # fmt: skip
    return logits, Classes.make(of, count), row.repeat(2), id.repeat(2), weights


def plainly(logits, classes, row, id):
    probability = torch.softmax(logits, -1)
    mass = torch.stack(
        [probability[:, classes.of == number].sum(1) for number in range(len(classes))], 1
    )
    return mass, probability[row, id]


def gradient(function, logits, classes, row, id, weights):
    logits = logits.clone().requires_grad_()
    mass, single = function(logits, classes, row, id)
    value = (mass * weights[0]).sum() + (single * weights[1].repeat(2)).sum()
    return mass, single, *torch.autograd.grad(value, logits)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_equal_to_plain_sums(seed, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(module.kernel, "available", lambda: False)
    logits, classes, row, id, weights = case(seed, dtype)
    found = gradient(class_mass, logits, classes, row, id, weights)
    wide = [part.double() for part in weights]
    expected = gradient(plainly, logits.double(), classes, row, id, wide)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert torch.allclose(one.double(), other, rtol=tolerance, atol=tolerance)


def test_the_gradient_is_that_of_the_value():
    logits, classes, row, id, _ = case(7, torch.float64)
    assert torch.autograd.gradcheck(
        lambda values: class_mass(values, classes, row, id), logits.requires_grad_()
    )


def test_only_one_of_both_may_be_used():
    logits, classes, row, id, _ = case(8, torch.float32)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(class_mass(logits, classes, row, id)[1].sum(), logits)
    (expected,) = torch.autograd.grad(plainly(logits, classes, row, id)[1].sum(), logits)
    assert torch.allclose(found, expected, atol=1e-6)


def test_several_threads_change_nothing(monkeypatch):
    logits, *others = case(3, torch.float32)
    expected = gradient(class_mass, logits, *others)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found = gradient(class_mass, logits, *others)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
