"""Binary divergences against 60 digits, their limits, and the numerics below them."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.functional.numerics import expm1_residual, log1mexp, log1p_residual
from oracle.binary import divergence as exact

TEMPERATURES = [1.0, 5.0, 100.0, math.inf]
LOGPROBS = [0.0, -1e-12, -1e-4, -0.3, -1.0, -1.0001, -1.2, -30.0, -1000.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_equals_sixty_digits_for_near_and_far_arguments(divergence, temperature):
    for p in LOGPROBS:
        for q in LOGPROBS:
            got = F.binarised_divergence(
                torch.tensor(p, dtype=torch.float64),
                torch.tensor(q, dtype=torch.float64),
                divergence=divergence,
                temperature=temperature,
            ).item()
            # Beside relative precision: what one rounding of p or q itself can change.
            assert got == pytest.approx(
                exact(p, q, temperature, divergence), rel=1e-9, abs=1e-17
            ), (p, q)


@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_float32_keeps_its_digits_where_student_and_teacher_nearly_agree(divergence):
    for p, q in [(-8.0, -8.0625), (-8.0, -7.9921875), (-0.5, -0.53125)]:
        for temperature in TEMPERATURES:
            got = F.binarised_divergence(
                torch.tensor(p), torch.tensor(q), divergence=divergence, temperature=temperature
            ).item()
            # The rounding of p / T - 1e-6 in float32 costs a few digits, and no more.
            assert got == pytest.approx(exact(p, q, temperature, divergence), rel=2e-4), p


@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_the_limit_is_that_of_temperature_times_divergence(divergence):
    p, q = torch.tensor([-2.0, -0.7], dtype=torch.float64), torch.tensor([-3.0, -0.1]).double()
    limit = F.binarised_divergence(p, q, divergence=divergence, temperature=math.inf)
    # At T = 1e3 the subtracted 1e-6 is small beside p / T.
    near = F.binarised_divergence(p, q, divergence=divergence, temperature=1e3) * 1e3
    assert torch.allclose(limit, near, rtol=2e-2)


@given(st.floats(-1000, -1e-6), st.sampled_from(F.DIVERGENCES), st.sampled_from(TEMPERATURES))
def test_zero_at_equality(p, divergence, temperature):
    value = torch.tensor([p], dtype=torch.float32)
    got = F.binarised_divergence(value, value, divergence=divergence, temperature=temperature)
    assert got.item() == 0.0


@given(
    st.floats(-50, 0), st.floats(-50, 0), st.sampled_from(["kl", "reverse_kl"]),
    st.sampled_from(TEMPERATURES),
)  # fmt: skip
def test_forward_and_reverse_exchange_the_arguments(p, q, divergence, temperature):
    other = {"kl": "reverse_kl", "reverse_kl": "kl"}[divergence]
    a, b = torch.tensor(p, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)
    one = F.binarised_divergence(a, b, divergence=divergence, temperature=temperature)
    two = F.binarised_divergence(b, a, divergence=other, temperature=temperature)
    assert one == two


@pytest.mark.parametrize("temperature", [1.0, 100.0, math.inf])
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_gradient_across_the_seam_between_the_two_forms(divergence, temperature):
    teacher = torch.tensor([-1.0] * 8, dtype=torch.float64)
    student = torch.tensor(
        [-1.05, -1.0999, -1.1002, -0.91, -0.9, -5.0, -0.2, -1.000001], dtype=torch.float64
    ).requires_grad_()

    def each(student):
        return F.binarised_divergence(
            teacher, student, divergence=divergence, temperature=temperature
        )

    assert torch.autograd.gradcheck(each, (student,))


@given(st.floats(-700, -1e-12))
def test_log1mexp(x):
    with localcontext() as context:
        context.prec = 60
        expected = float((1 - Decimal(x).exp()).ln())
    value = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    log1mexp(value).backward()
    assert log1mexp(value).item() == pytest.approx(expected, rel=1e-12)
    assert value.grad is not None
    assert value.grad.isfinite()


@given(st.floats(-0.1, 0.1).filter(lambda x: abs(x) > 1e-9))
def test_residuals(x):
    with localcontext() as context:
        context.prec = 60
        exact_x = Decimal(x)
        expm1 = float(exact_x.exp() - 1 - exact_x)
        log1p = float(exact_x - (1 + exact_x).ln())
    value = torch.tensor(x, dtype=torch.float64)
    assert expm1_residual(value).item() == pytest.approx(expm1, rel=1e-13)
    assert log1p_residual(value).item() == pytest.approx(log1p, rel=1e-13)
