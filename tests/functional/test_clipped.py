"""Clipped and swapped divergences against the float64 oracle, by hand, and at their edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from functional.test_classical import random_rows
from oracle import classical as oracle

DAC = [
    {},
    {"tail": "drop"},
    {"lower": 0.3, "upper": 0.8},
    {"lower": 0.3, "upper": 0.8, "tail": "drop"},
    {"upper": 1.0, "top_k": 2},
]


def targets(rows, vocab, seed=0):
    return torch.randint(vocab, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("options", DAC)
def test_dac_kl_equals_the_oracle(options, temperature, dtype, tolerance):
    for seed in range(3):
        student, teacher = random_rows(seed, dtype=dtype)
        target = targets(*student.shape, seed)
        loss = F.dac_kl(student, teacher, target, temperature=temperature, **options)
        found = [
            oracle.dac_kl(
                oracle.log_softmax(t, temperature), oracle.log_softmax(s, temperature), v, **options
            )
            for s, t, v in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
        ]
        expected = temperature**2 * sum(value for value, _ in found)
        assert loss.total.item() == pytest.approx(expected, rel=tolerance)
        assert loss.sums["kept"] == sum(kept for _, kept in found)
        assert loss.count == len(student)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_swapped_kl_equals_the_oracle(weight, temperature, dtype, tolerance):
    for seed in range(3):
        student, teacher = random_rows(seed, dtype=dtype)
        target = targets(*student.shape, seed)
        target[0] = teacher[0].argmax()
        loss = F.swapped_kl(
            student, teacher, target, student_weight=weight, temperature=temperature
        )
        found = [
            oracle.swapped_kl(s, t, v, weight, temperature)
            for s, t, v in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True)
        ]
        expected = temperature**2 * sum(value for value, _ in found)
        assert loss.total.item() == pytest.approx(expected, rel=tolerance)
        assert loss.sums["swapped"] == sum(changed for _, changed in found) < len(student)


@pytest.mark.parametrize("options", DAC)
def test_gradcheck_of_dac_kl(options):
    student, teacher = random_rows(4, rows=3, vocab=6)
    target = targets(3, 6)
    assert torch.autograd.gradcheck(
        lambda x: F.dac_kl(x, teacher, target, **options).total, (student.requires_grad_(),)
    )


def test_gradcheck_of_swapped_kl_from_the_teacher():
    student, teacher = random_rows(4, rows=3, vocab=6)
    target = targets(3, 6)
    assert torch.autograd.gradcheck(
        lambda x: F.swapped_kl(x, teacher, target, student_weight=0.0).total,
        (student.requires_grad_(),),
    )


def test_the_student_set_right_is_held_fixed():
    student, teacher = random_rows(5, rows=4)
    target = targets(*student.shape)
    student.requires_grad_()
    fixed = torch.tensor(
        [oracle.set_right(s, t) for s, t in zip(student.tolist(), target.tolist(), strict=True)],
        dtype=torch.float64,
    )
    whole = F.swapped_kl(student, teacher, target, student_weight=0.5).total
    first = F.swapped_kl(student, teacher, target, student_weight=0.0).total
    (second,) = torch.autograd.grad(whole - first, student)
    (expected,) = torch.autograd.grad(0.5 * F.forward_kl(student, fixed).total, student)
    assert torch.allclose(second, expected, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(DAC), st.floats(0.1, 30.0))
def test_clipping_gives_no_more_than_the_forward_kl(seed, options, spread):
    student, teacher = random_rows(seed, rows=3, spread=spread)
    target = targets(*student.shape, seed)
    value = F.dac_kl(student, teacher, target, **options).total.item()
    assert value >= -1e-12
    if options.get("tail", "pool") == "pool":
        assert value <= F.forward_kl(student, teacher).total.item() * (1 + 1e-12) + 1e-12
    shifted = F.dac_kl(student + 3.0, teacher - 5.0, target, **options).total.item()
    assert shifted == pytest.approx(value, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("options", DAC)
def test_dac_kl_is_zero_for_equal_models(options):
    student, _ = random_rows(6, dtype=torch.float32)
    student.requires_grad_()
    loss = F.dac_kl(student, student.detach(), targets(*student.shape), **options)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert abs(loss.total.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_with_all_of_it_dense_it_is_the_forward_kl():
    student, teacher = random_rows(7)
    loss = F.dac_kl(student, teacher, targets(*student.shape), upper=1.0)
    assert torch.allclose(loss.total, F.forward_kl(student, teacher).total, rtol=1e-12)


def test_a_teacher_and_a_student_that_are_right_are_left_alone():
    student, teacher = random_rows(8)
    student.copy_(student.sort(-1).values)
    teacher.copy_(teacher.sort(-1).values)
    target = torch.full((len(student),), student.shape[1] - 1)
    loss = F.swapped_kl(student, teacher, target)
    assert torch.allclose(loss.total, F.forward_kl(student, teacher).total, rtol=1e-12)
    assert loss.sums["swapped"] == 0


@pytest.mark.parametrize("name", ["dac_kl", "swapped_kl"])
def test_minus_infinity_is_finite(name):
    student, teacher = random_rows(9, dtype=torch.float32)
    student[0, :4], teacher[0, 3:7] = -torch.inf, -torch.inf
    student[1], teacher[2] = -torch.inf, -torch.inf
    target = torch.tensor([3, 0, 1, 2, 3])
    student.requires_grad_()
    loss = getattr(F, name)(student, teacher, target)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["dac_kl", "swapped_kl"])
def test_no_row_gives_zero_with_a_graph(name):
    student = torch.zeros(0, 7, requires_grad=True)
    loss = getattr(F, name)(student, torch.zeros(0, 7), torch.zeros(0, dtype=torch.long))
    loss.mean().backward()
    assert loss.total.item() == loss.count.item() == 0
    assert student.grad is not None


def test_by_hand():
    teacher = torch.tensor([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]], dtype=torch.float64).log()
    target = torch.tensor([0, 1])
    ln = torch.log(torch.tensor([2.0, 0.5 / 0.75, 1.6, 0.4], dtype=torch.float64))
    # Row 0: token 0 against the rest. Row 1: 0 and the target 1, and 2 alone in the rest.
    expected = 0.5 * ln[0] + 0.5 * ln[1] + 0.8 * ln[2] + 0.2 * ln[3]
    loss = F.dac_kl(student, teacher, target, upper=0.5)
    assert loss.total.item() == pytest.approx(expected.item())
    assert loss.sums["kept"] == 3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dac_kl", {"lower": 0.9, "upper": 0.5}, "lower < upper"),
        ("dac_kl", {"upper": 1.1}, "upper <= 1"),
        ("dac_kl", {"top_k": 0}, "at least 1"),
        ("dac_kl", {"tail": "cut"}, "pool, drop"),
        ("swapped_kl", {"student_weight": -1.0}, "at least 0"),
        ("swapped_kl", {"temperature": -1.0}, "above 0"),
    ],
)
def test_values_out_of_range_are_refused(name, options, words):
    zeros = torch.zeros(1, 2)
    with pytest.raises(ConfigError, match=words):
        getattr(F, name)(zeros, zeros, torch.tensor([0]), **options)
