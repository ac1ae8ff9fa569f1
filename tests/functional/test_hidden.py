"""`hidden_loss` against the float64 oracle, by hand, and its properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from oracle import hidden as oracle


def states(seed, rows=5, size=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(2, rows, size, generator=generator, dtype=torch.float64)
    return made[0].to(dtype), made[1].to(dtype)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("distance", F.HIDDEN_DISTANCES)
def test_equals_the_oracle(distance, dtype, tolerance):
    for seed in range(3):
        student, teacher = states(seed, dtype=dtype)
        loss = F.hidden_loss(student, teacher, distance=distance)
        total, count = oracle.hidden(student.tolist(), teacher.tolist(), distance)
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.count.item() == count
        assert loss.total.dtype == dtype


def test_two_states_of_three_numbers_by_hand():
    student = torch.tensor([[1.0, 2.0, 2.0], [0.0, 3.0, 4.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 4.0, 3.0]])
    # squares 8 and 2, over 3 numbers each; the teacher's mean squares 1/3 and 25/3
    assert F.hidden_loss(student, teacher, distance="mse").total.item() == pytest.approx(10 / 3)
    normalised = F.hidden_loss(student, teacher, distance="normalised_mse")
    assert normalised.total.item() == pytest.approx(8 + 2 / 25)
    # 1 - 1/3 and 1 - 24/25
    cosine = F.hidden_loss(student, teacher, distance="cosine")
    assert cosine.total.item() == pytest.approx(2 / 3 + 1 / 25, rel=1e-5)


@pytest.mark.parametrize("distance", F.HIDDEN_DISTANCES)
def test_gradcheck(distance):
    student, teacher = states(7)
    assert torch.autograd.gradcheck(
        lambda x: F.hidden_loss(x, teacher, distance=distance).total, student.requires_grad_()
    )


@given(st.integers(0, 10**6), st.sampled_from(F.HIDDEN_DISTANCES))
def test_zero_for_equal_states_and_never_negative(seed, distance):
    student, teacher = states(seed)
    assert F.hidden_loss(student, teacher, distance=distance).total > 0
    assert abs(F.hidden_loss(teacher, teacher, distance=distance).total) < 1e-6


@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_what_a_common_scale_does(seed, scale):
    student, teacher = states(seed)

    def total(distance, *factors):
        one, two = student * factors[0], teacher * factors[1]
        return F.hidden_loss(one, two, distance=distance).total.item()

    assert total("mse", scale, scale) == pytest.approx(scale**2 * total("mse", 1, 1))
    for distance in ("normalised_mse", "cosine"):
        assert total(distance, scale, scale) == pytest.approx(total(distance, 1, 1), rel=1e-4)
    assert total("cosine", scale, 1) == pytest.approx(total("cosine", 1, 1), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("distance", F.HIDDEN_DISTANCES)
@pytest.mark.parametrize("rows", [0, 2])
def test_nothing_and_states_of_zeros_have_a_finite_gradient(distance, rows):
    student = torch.zeros(rows, 3, requires_grad=True)
    loss = F.hidden_loss(student, torch.zeros(rows, 3), distance=distance)
    loss.total.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert loss.count == rows
    assert loss.total == (rows if distance == "cosine" else 0)


@pytest.mark.parametrize("distance", F.HIDDEN_DISTANCES)
def test_the_teacher_gets_no_gradient(distance):
    student, teacher = states(1)
    teacher.requires_grad_()
    F.hidden_loss(student.requires_grad_(), teacher, distance=distance).total.backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_an_unknown_distance_is_named():
    with pytest.raises(ConfigError, match="normalised_mse"):
        F.hidden_loss(*states(0), distance="l2")
