"""Losses of rows, fused with the head: equal to the plain form."""

import pytest
import torch

from crosstill.functional import HeadMatrix
from crosstill.functional.head import row_logits
from crosstill.functional.losses import LossSum
from crosstill.functional.row_head import RowTerm, fused_rows

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"logit_scale": 0.3},
    "cap": {"softcap": 2.0},
    "all": {"bias": True, "logit_scale": 3.0, "softcap": 1.5},
}


def setting(options, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 5, 4, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(7, 4, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    options = dict(options)
    if options.pop("bias", False):
        options["bias"] = torch.randn(7, generator=g, dtype=torch.float64).to(dtype)
        options["bias"].requires_grad_()
    return hidden, HeadMatrix(weight, **options)


def square(logits):
    """A loss that uses every logit of a row, and every row by its number."""
    weights = torch.arange(1.0, logits.numel() + 1, dtype=logits.dtype).view_as(logits)
    total = (weights * torch.log_softmax(logits, -1)).sum()
    return LossSum(total, torch.tensor(float(len(logits))), {"rows": total.detach()})


TERMS = [
    (torch.tensor([0, 1, 1]), torch.tensor([4, 0, 2])),
    (torch.tensor([1]), torch.tensor([2])),  # a row of the first term again
]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("vocab_size", [None, 5])
def test_equal_to_the_plain_form(name, vocab_size):
    hidden, head = setting(HEADS[name])
    inputs = [hidden, head.weight] + ([] if head.bias is None else [head.bias])
    logits = row_logits(hidden, head)[..., :vocab_size]
    expected = 3 * sum(square(logits[rows]).total for rows in TERMS)
    wanted = torch.autograd.grad(expected, inputs)
    found = fused_rows(
        hidden, head, [RowTerm(rows, square) for rows in TERMS], vocab_size=vocab_size
    )
    gradients = torch.autograd.grad(3 * found.total, inputs)
    assert torch.allclose(3 * found.total, expected, rtol=1e-12)
    assert found.count == 4
    assert torch.allclose(3 * found.sums["rows"], expected.detach())
    for one, two in zip(wanted, gradients, strict=True):
        assert torch.allclose(one, two, atol=1e-12)


def test_no_rows_give_zero_with_a_graph():
    hidden, head = setting({})
    found = fused_rows(hidden, head, [])
    gradient, _ = torch.autograd.grad(found.total, [hidden, head.weight])
    assert found.total == found.count == 0
    assert not gradient.any()


def test_bfloat16_states_are_summed_in_float32():
    hidden, head = setting({}, torch.bfloat16)
    found = fused_rows(hidden, head, [RowTerm(rows, square) for rows in TERMS])
    exact = fused_rows(
        hidden.detach().double(), HeadMatrix(head.weight.detach().double()),
        [RowTerm(rows, square) for rows in TERMS],
    )  # fmt: skip
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(exact.total.item(), rel=1e-2)


def test_without_gradients_none_is_made():
    hidden, head = setting({})
    with torch.no_grad():
        found = fused_rows(hidden, head, [RowTerm(TERMS[0], square)])
    assert not found.total.requires_grad


def test_a_second_backward_is_refused():
    hidden, head = setting({})
    total = fused_rows(hidden, head, [RowTerm(TERMS[0], square)]).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()
