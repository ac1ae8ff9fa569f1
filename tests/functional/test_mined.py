"""`mined_loss` against the float64 oracle, by hand, and its properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.mined import MERGES, carry, one_hot_loss
from oracle import mined as oracle

VS, VT = 7, 11
MAP = torch.tensor([3, 0, -1, 3, 6, 6, 1, 3, -1, 2, 0])


def logits(seed, rows=5, sizes=(VS, VT), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (2 * torch.randn(rows, size, generator=generator, dtype=torch.float64)).to(dtype)
        for size in sizes
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("merge", MERGES)
def test_equals_the_oracle(merge, temperature, dtype, tolerance):
    student, teacher = logits(1, dtype=dtype)
    loss = F.mined_loss(student, teacher, MAP, temperature=temperature, merge=merge)
    total, count, mapped = oracle.mined(
        student.double().numpy(), teacher.double().numpy(), MAP.tolist(), temperature, merge
    )
    assert loss.total.item() == pytest.approx(total, rel=tolerance)
    assert loss.count.item() == count
    assert loss.sums["mapped"].item() == pytest.approx(mapped, rel=tolerance)
    assert loss.total.dtype == dtype


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_hot_equals_the_oracle(temperature):
    student, _ = logits(2)
    target = torch.tensor([0, 6, 3, 3, 1])
    loss = one_hot_loss(student, target, temperature=temperature)
    total, count = oracle.one_hot(student.numpy(), target.tolist(), temperature)
    assert loss.total.item() == pytest.approx(total, rel=1e-9)
    assert loss.count.item() == count


@pytest.mark.parametrize("merge", MERGES)
def test_gradcheck(merge):
    student, teacher = logits(3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: F.mined_loss(z, teacher, MAP, temperature=1.5, merge=merge).total, student
    )
    target = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(
        lambda z: one_hot_loss(z, target, temperature=1.5).total, student
    )


def test_two_by_three_by_hand():
    # teacher 0.5 0.3 0.2, the first and the third go to student token 0: 0.7 0.3
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.5], [0.2, 0.8]], dtype=torch.float64).log()
    loss = F.mined_loss(student, teacher, torch.tensor([0, 1, 0]))
    assert loss.total.item() == pytest.approx(0.0822829, abs=1e-7)
    one = F.mined_loss(student, teacher, torch.tensor([0, 1, -1]), merge="max")
    # 0.5 0.3 of 0.8, and 0.1 0.8 of 0.9
    assert one.sums["mapped"].item() == pytest.approx(1.7)
    assert one.total.item() == pytest.approx(0.0315839 + 0.0283441, abs=1e-6)


def test_the_logits_are_not_written_to_in_any_precision():
    """The released code overwrites the student's float32 logits by the target: its loss is 0."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        student, teacher = logits(4, dtype=dtype)
        kept = student.clone(), teacher.clone()
        loss = F.mined_loss(student.requires_grad_(), teacher, MAP)
        loss.total.backward()
        assert loss.total.item() > 0.1
        assert student.grad is not None
        assert torch.equal(student, kept[0])
        assert torch.equal(teacher, kept[1])


@given(st.integers(0, 10**6), st.integers(1, 9), st.sampled_from(MERGES))
def test_properties(seed, vocab, merge):
    student, teacher = logits(seed, sizes=(vocab, vocab))
    same = torch.arange(vocab)
    assert F.mined_loss(student, student, same, merge=merge).total.item() == pytest.approx(
        0, abs=1e-12
    )
    loss = F.mined_loss(student, teacher, same, merge=merge)
    assert loss.total.item() >= -1e-12
    shifted = F.mined_loss(student + 3.0, teacher - 1.0, same, merge=merge)
    assert shifted.total.item() == pytest.approx(loss.total.item(), abs=1e-10)
    assert loss.total.item() == pytest.approx(F.forward_kl(student, teacher).total.item(), abs=1e-9)


@given(st.integers(0, 10**6), st.sampled_from(["sum", "max"]))
def test_the_order_of_the_teachers_tokens_has_no_effect(seed, merge):
    student, teacher = logits(seed)
    order = torch.randperm(VT, generator=torch.Generator().manual_seed(seed))
    one = F.mined_loss(student, teacher, MAP, merge=merge)
    other = F.mined_loss(student, teacher[:, order], MAP[order], merge=merge)
    assert other.total.item() == pytest.approx(one.total.item(), rel=1e-12)


def test_first_takes_the_lowest_id():
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    token_map = torch.tensor([1, 1, -1, 1])
    expected = {"sum": 0.7, "max": 0.4, "first": 0.1}
    for merge, value in expected.items():
        got = carry(p, token_map, 2, merge=merge)
        torch.testing.assert_close(got, torch.tensor([[0.0, value]]))


@pytest.mark.parametrize("merge", MERGES)
def test_the_edges_of_the_domain(merge):
    student, teacher = logits(5)
    student[0, 3], student[1], teacher[2], teacher[3, 1:] = (
        -torch.inf,
        -torch.inf,
        -torch.inf,
        -torch.inf,
    )
    student.requires_grad_()
    loss = F.mined_loss(student, teacher, MAP, merge=merge)
    expected = oracle.mined(student.detach().numpy(), teacher.numpy(), MAP.tolist(), merge=merge)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.item() == pytest.approx(expected[0], rel=1e-9)
    assert gradient.isfinite().all()


def test_a_map_that_carries_nothing_teaches_nothing():
    student, teacher = logits(6)
    student.requires_grad_()
    loss = F.mined_loss(student, teacher, torch.full((VT,), -1))
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total == loss.sums["mapped"] == 0
    assert loss.count == 5
    assert not gradient.any()


def test_no_rows_are_zero_with_a_graph():
    student = torch.zeros(0, VS, requires_grad=True)
    loss = F.mined_loss(student, torch.zeros(0, VT), MAP)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total == loss.count == 0
    assert gradient.shape == (0, VS)
    rest = one_hot_loss(student, torch.zeros(0, dtype=torch.int64))
    assert rest.total == rest.count == 0


def test_the_teacher_gets_no_gradient():
    student, teacher = logits(7)
    loss = F.mined_loss(student.requires_grad_(), teacher.requires_grad_(), MAP)
    loss.total.backward()
    assert teacher.grad is None
    assert not loss.sums["mapped"].requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"merge": "mean"}, "merge must be one of sum, max, first"),
        ({"token_map": MAP[:-1]}, "map of 11 teacher tokens"),
    ],
)
def test_faults_are_named(change, message):
    student, teacher = logits(8)
    with pytest.raises(ConfigError, match=message):
        F.mined_loss(student, teacher, **{"token_map": MAP, **change})
