"""`uld_loss` against the float64 oracle, by hand, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional import uld as module
from oracle import uld as oracle

SHAPES = [(7, 11), (11, 7), (9, 9)]


def logits(seed, student, teacher, rows=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (2 * torch.randn(rows, size, generator=generator, dtype=torch.float64)).to(dtype)
        for size in (student, teacher)
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (2.0, 0.7)])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_oracle(shape, temperatures, dtype, tolerance):
    student, teacher = logits(1, *shape, dtype=dtype)
    loss = F.uld_loss(
        student, teacher, student_temperature=temperatures[0], teacher_temperature=temperatures[1]
    )
    total, count = oracle.uld(student.double().numpy(), teacher.double().numpy(), *temperatures)
    assert loss.total.item() == pytest.approx(total, rel=tolerance)
    assert loss.count.item() == count
    assert loss.total.dtype == dtype


@pytest.mark.parametrize("top_k", [0, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradcheck(shape, top_k):
    student, teacher = logits(2, *shape)
    assert torch.autograd.gradcheck(
        lambda z: F.uld_loss(z, teacher, student_temperature=1.5, top_k=top_k).total,
        student.requires_grad_(),
    )


def test_float32_on_the_processor_has_the_gradient_of_sorting():
    student, teacher = logits(3, 300, 350, rows=5, dtype=torch.float32)
    student.requires_grad_()
    (got,) = torch.autograd.grad(F.uld_loss(student, teacher).total, student)
    exact = student.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(F.uld_loss(exact, teacher.double()).total, exact)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-7)


def test_a_row_of_two_by_three_by_hand():
    # sorted: 0.7 0.3 0 against 0.5 0.3 0.2, and 0.6 0.4 0 against 0.8 0.1 0.1
    student = torch.tensor([[0.3, 0.7], [0.6, 0.4]]).log()
    teacher = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]]).log()
    loss = F.uld_loss(student, teacher)
    assert loss.total.item() == pytest.approx(0.4 + 0.6)
    assert loss.mean().item() == pytest.approx(0.5)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_properties(seed, vs, vt):
    student, teacher = logits(seed, vs, vt)
    loss = F.uld_loss(student, teacher)
    generator = torch.Generator().manual_seed(seed)
    mixed = F.uld_loss(
        student[:, torch.randperm(vs, generator=generator)] + 3.0,
        teacher[:, torch.randperm(vt, generator=generator)] - 1.0,
    )
    assert mixed.total.item() == pytest.approx(loss.total.item(), abs=1e-12)
    assert 0 <= loss.total.item() <= 2 * len(student)
    assert F.uld_loss(student, student).total.item() == 0
    back = F.uld_loss(teacher, student)
    assert back.total.item() == pytest.approx(loss.total.item(), abs=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_truncation_is_within_its_bound(seed, top_k):
    student, teacher = logits(seed, 8, 10)
    exact = F.uld_loss(student, teacher).total.item()
    cut = F.uld_loss(student, teacher, top_k=top_k)
    total, left = oracle.truncated(student.numpy(), teacher.numpy(), top_k)
    assert cut.total.item() == pytest.approx(total, rel=1e-9)
    assert cut.sums["error_bound"].item() == pytest.approx(left, abs=1e-12)
    gap = exact - cut.total.item()
    assert -1e-12 <= gap <= cut.sums["error_bound"].item() + 1e-12


def test_equal_models_get_no_gradient():
    student, _ = logits(5, 40, 40, dtype=torch.float32)
    leaf = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.uld_loss(leaf, student).total, leaf)
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_tokens_get_equal_gradients(dtype):
    student = torch.tensor([[1.0, 0.0, 1.0, 1.0, -2.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[2.0, 0.5, 0.0, -1.0]], dtype=dtype)
    (gradient,) = torch.autograd.grad(F.uld_loss(student, teacher).total, student)
    assert gradient[0, 0] == gradient[0, 2] == gradient[0, 3] != 0


@pytest.mark.parametrize("top_k", [0, 2])
def test_no_rows(top_k):
    student = torch.zeros(0, 5, requires_grad=True)
    loss = F.uld_loss(student, torch.zeros(0, 4), top_k=top_k)
    assert loss.total == loss.count == 0
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert gradient.shape == (0, 5)


def test_what_cannot_be_has_finite_gradients():
    student = torch.tensor([[-torch.inf, 0.0, 500.0], [0.0, -torch.inf, 0.0]]).requires_grad_()
    teacher = torch.tensor([[0.0, -torch.inf], [300.0, 0.0]])
    loss = F.uld_loss(student, teacher)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_blocks_and_the_whole_agree(monkeypatch):
    student, teacher = logits(6, 30, 20, rows=7)
    student.requires_grad_()
    whole = F.uld_loss(student, teacher)
    (expected,) = torch.autograd.grad(whole.total, student)
    monkeypatch.setattr(module, "rows_in_block", lambda *_: 3)
    parts = F.uld_loss(student, teacher)
    (got,) = torch.autograd.grad(parts.total, student)
    assert parts.total.item() == pytest.approx(whole.total.item(), rel=1e-12)
    torch.testing.assert_close(got, expected)


def test_low_precision_gets_its_own_dtype_back():
    student, teacher = (x.bfloat16() for x in logits(7, 20, 25))
    leaf = student.clone().requires_grad_()
    loss = F.uld_loss(leaf, teacher)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    exact = F.uld_loss(student.double(), teacher.double())
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-5)
    assert gradient.dtype == torch.bfloat16


def test_without_numba_it_sorts(monkeypatch):
    student, teacher = logits(8, 30, 20, dtype=torch.float32)
    expected = F.uld_loss(student, teacher).total.item()
    monkeypatch.setattr(module.kernel, "available", lambda: False)
    monkeypatch.setattr(module.kernel, "sorted_l1", None)
    assert F.uld_loss(student, teacher).total.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_temperature": 0.0}, "student_temperature must be above 0"),
        ({"teacher_temperature": np.inf}, "teacher_temperature must be above 0"),
        ({"top_k": -1}, "top_k must be at least 0"),
    ],
)
def test_what_cannot_be_asked(options, words):
    with pytest.raises(ConfigError, match=words):
        F.uld_loss(torch.zeros(1, 2), torch.zeros(1, 2), **options)
