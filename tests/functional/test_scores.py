"""Log-probabilities and boundary masses from logits."""

import pytest
import torch

from crosstill import functional as F
from functional.cases import random_case
from oracle import alm as oracle


@pytest.mark.parametrize("vocab_size", [None, 15])
def test_equal_the_oracle(vocab_size):
    case = random_case(3)
    ids = case.student_ids % 15
    logits = case.logits
    got = F.token_logprobs(logits, ids, vocab_size=vocab_size)
    expected = oracle.token_logprobs(logits.numpy(), ids.tolist(), vocab_size)
    assert torch.allclose(got, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)
    got = F.boundary_logmass(logits, case.mask, vocab_size)
    expected = oracle.boundary_logmass(logits.numpy(), case.mask.tolist(), vocab_size)
    assert torch.allclose(got, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_surplus_rows_get_neither_probability_nor_gradient():
    logits = torch.zeros(1, 3, 8)
    logits[..., 6:] = 50.0
    logits.requires_grad_()
    ids, mask = torch.tensor([[0, 1, 2]]), torch.tensor([True, True, True, False, False, False])
    logprob = F.token_logprobs(logits, ids, vocab_size=6)
    mass = F.boundary_logmass(logits, mask, vocab_size=6)
    (logprob.sum() + mass.sum()).backward()
    assert torch.allclose(logprob[0, 1:].exp(), torch.full((2,), 1 / 6))
    assert torch.allclose(mass.exp(), torch.full((1, 3), 0.5))
    assert logits.grad is not None
    assert not logits.grad[..., 6:].any()


def test_a_mass_below_the_smallest_float_is_exact():
    logits = torch.tensor([[[0.0, -400.0, -401.0]]])
    mass = F.boundary_logmass(logits, torch.tensor([False, True, True]))
    assert mass.item() == pytest.approx(-400 + torch.tensor(-1.0).exp().log1p().item(), rel=1e-6)


@pytest.mark.parametrize("logits", [[0.0, 1.0, -torch.inf], [-torch.inf] * 3])
def test_no_mass_at_all_has_a_finite_gradient(logits):
    value = torch.tensor([[logits]], requires_grad=True)
    mass = F.boundary_logmass(value, torch.tensor([False, False, True]))
    mass.clamp(min=-1e4).sum().backward()
    assert mass.item() == -torch.inf
    assert value.grad is not None
    if logits[0] == 0.0:
        assert not value.grad.any()


def test_bfloat16_logits_are_summed_in_float32():
    case = random_case(4)
    logits = case.logits.bfloat16()
    got = F.token_logprobs(logits, case.student_ids)
    assert got.dtype == torch.float32
    expected = F.token_logprobs(logits.double(), case.student_ids)
    assert torch.allclose(got.double(), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 1)])
def test_empty_batches(shape):
    ids = torch.zeros(shape, dtype=torch.long)
    assert F.token_logprobs(torch.zeros(*shape, 4), ids).shape == shape
    assert F.boundary_logmass(torch.zeros(*shape, 4), torch.ones(4).bool()).shape == shape


def test_gradcheck():
    case = random_case(6, rows=2, student=4)
    logits = case.logits.requires_grad_()
    ids = case.student_ids
    assert torch.autograd.gradcheck(lambda x: F.token_logprobs(x, ids, vocab_size=19), (logits,))
    assert torch.autograd.gradcheck(lambda x: F.boundary_logmass(x, case.mask), (logits,))


def test_sft_equals_the_oracle():
    case = random_case(7)
    logprob = F.token_logprobs(case.logits, case.student_ids)
    loss = F.sft_loss(logprob, case.labels)
    total, count = oracle.sft(logprob.numpy(), case.labels.tolist())
    assert loss.total.item() == pytest.approx(total, rel=1e-12)
    assert loss.count.item() == count > 0


def test_sft_never_counts_position_zero():
    loss = F.sft_loss(-torch.ones(1, 2), torch.tensor([[4, 5]]))
    assert loss.total.item() == loss.count.item() == 1
