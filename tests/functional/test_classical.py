"""Divergences over one vocabulary against the float64 oracle, by hand, and at their edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.rowsum import check_rows
from oracle import classical as oracle

NAMED = ["forward_kl", "reverse_kl", "jsd", "skewed_kl", "skewed_reverse_kl", "adaptive_kl",
         "total_variation"]  # fmt: skip
OPTIONS = [
    *((name, {}) for name in NAMED),
    ("jsd", {"beta": 0.0}),
    ("jsd", {"beta": 1.0}),
    ("jsd", {"beta": 0.1}),
    ("jsd", {"beta": 0.9, "scale": "gkd"}),
    ("jsd", {"beta": 1e-3}),
    ("skewed_kl", {"alpha": 0.0}),
    ("skewed_reverse_kl", {"alpha": 0.6}),
    ("adaptive_kl", {"mu": 0.9, "head_size": 3}),
]
FACTOR = {"total_variation": 1}  # the power of the temperature; 2 for all others


def random_rows(seed=0, rows=5, vocab=13, dtype=torch.float64, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    made = spread * torch.randn(2, rows, vocab, generator=g, dtype=torch.float64)
    return made[0].to(dtype), made[1].to(dtype)


def both(seed, **shape):
    return [one.requires_grad_() for one in random_rows(seed, **shape)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_equals_the_oracle(name, options, temperature, dtype, tolerance):
    for seed in range(3):
        student, teacher = random_rows(seed, dtype=dtype)
        loss = getattr(F, name)(student, teacher, temperature=temperature, **options)
        expected = sum(
            getattr(oracle, name)(
                oracle.log_softmax(t, temperature), oracle.log_softmax(s, temperature), **options
            )
            for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        )
        expected *= temperature ** FACTOR.get(name, 2)
        # f32: a difference of two sums of the order of 1, where beta is small
        slack = 30 if options.get("beta") == 1e-3 and dtype == torch.float32 else 1
        assert loss.total.item() == pytest.approx(expected, rel=slack * tolerance)
        assert loss.count == len(student)
        assert loss.total.dtype == dtype


# The weights of adaptive_kl are held fixed in its gradient; that has a test of its own.
@pytest.mark.parametrize(("name", "options"), [one for one in OPTIONS if one[0] != "adaptive_kl"])
def test_gradcheck(name, options):
    student, teacher = random_rows(4, rows=3, vocab=6)
    assert torch.autograd.gradcheck(
        lambda x: getattr(F, name)(x, teacher, temperature=1.5, **options).total,
        (student.requires_grad_(),),
    )


def test_the_weights_of_adaptive_kl_get_no_gradient():
    student, teacher = both(5)
    p, q = F.forward_kl(student, teacher), F.reverse_kl(student, teacher)
    forward, reverse = (torch.autograd.grad(x.total, student)[0] for x in (p, q))
    (mixed,) = torch.autograd.grad(F.adaptive_kl(student, teacher).total, student)
    for row in range(len(student)):
        a, b, m = forward[row], reverse[row], mixed[row]
        share = ((m - b) @ (a - b)) / ((a - b) @ (a - b))
        assert 0 <= share <= 1
        assert torch.allclose(m, share * a + (1 - share) * b, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_zero_for_equal_models_with_a_zero_gradient(name, options):
    student, _ = both(6, dtype=torch.float32)
    loss = getattr(F, name)(student, student.detach(), **options)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert abs(loss.total.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


@settings(max_examples=25)
@given(
    st.integers(0, 10_000),
    st.sampled_from(OPTIONS),
    st.floats(0.1, 30.0),
    st.floats(-100.0, 100.0),
)
def test_never_negative_and_blind_to_a_constant_and_to_order(seed, what, spread, constant):
    name, options = what
    student, teacher = random_rows(seed, rows=3, spread=spread)
    call = getattr(F, name)
    value = call(student, teacher, **options).total.item()
    assert value >= -1e-12
    shifted = call(student + constant, teacher - constant, **options).total.item()
    assert shifted == pytest.approx(value, rel=1e-7, abs=1e-9)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(seed))
    moved = call(student[:, order], teacher[:, order], **options).total.item()
    assert moved == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_two_rows_of_three_tokens_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64).log()
    q = torch.tensor([[0.25, 0.25, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64).log()
    log2 = math.log(2.0)
    assert F.forward_kl(q, p).total.item() == pytest.approx(0.5 * log2 - 0.25 * log2)
    assert F.reverse_kl(q, p).total.item() == pytest.approx(0.5 * log2 - 0.25 * log2)
    assert F.total_variation(q, p).total.item() == pytest.approx(0.25)
    m = math.log(0.375)
    half = 0.5 * (math.log(0.5) - m) + 0.25 * (math.log(0.25) - m)
    assert F.jsd(q, p, scale="gkd").total.item() == pytest.approx(half)
    assert F.jsd(q, p).mean().item() == pytest.approx(4 * half / 2)


@pytest.mark.parametrize(("at", "near"), [(0.0, 1e-6), (1.0, 1 - 1e-6)])
def test_jsd_is_continuous_where_the_published_form_jumps(at, near):
    student, teacher = random_rows(7, dtype=torch.float32)
    value = F.jsd(student, teacher, beta=at).total.item()
    assert F.jsd(student, teacher, beta=near).total.item() == pytest.approx(value, rel=1e-3)
    assert F.jsd(student, teacher, beta=near, scale="gkd").total.item() < 1e-3 * value
    assert F.jsd(student, teacher, beta=at, scale="gkd").total.item() == value


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_minus_infinity_is_finite(name, options):
    student, teacher = random_rows(8, dtype=torch.float32)
    student[0, :4] = -torch.inf
    teacher[0, 3:7] = -torch.inf
    student[1], teacher[2] = -torch.inf, -torch.inf
    student.requires_grad_()
    loss = getattr(F, name)(student, teacher, **options)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[1].any()
    assert not gradient[0, :4].any()


@pytest.mark.parametrize("name", NAMED)
def test_no_row_gives_zero_with_a_graph(name):
    student = torch.zeros(0, 7, requires_grad=True)
    loss = getattr(F, name)(student, torch.zeros(0, 7))
    loss.mean().backward()
    assert loss.total.item() == loss.count.item() == 0
    assert student.grad is not None


@pytest.mark.parametrize("name", NAMED)
def test_the_teacher_gets_no_gradient_and_blocks_change_nothing(name, monkeypatch):
    student, teacher = both(9)
    loss = getattr(F, name)(student, teacher)
    (whole,) = torch.autograd.grad(loss.total, student, retain_graph=True)
    assert torch.autograd.grad(loss.total, teacher, allow_unused=True) == (None,)
    monkeypatch.setattr("crosstill.functional.rowsum.rows_in_block", lambda *_: 2)
    again = getattr(F, name)(student, teacher)
    (parts,) = torch.autograd.grad(again.total, student)
    assert torch.allclose(loss.total, again.total, rtol=1e-12)
    assert torch.allclose(whole, parts, atol=1e-15)


def test_the_gradient_keeps_its_scale_at_any_temperature():
    student, teacher = both(10)
    for name in NAMED:
        sizes = []
        for temperature in (50.0, 500.0):
            loss = getattr(F, name)(student, teacher, temperature=temperature)
            sizes.append(torch.autograd.grad(loss.total, student)[0].norm().item())
        assert sizes[0] == pytest.approx(sizes[1], rel=0.05), name


def test_nothing_is_read_back_from_the_device():
    rows = torch.zeros(4, 9, device="meta")
    for name in NAMED:
        assert getattr(F, name)(rows, rows).total.device.type == "meta"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("forward_kl", {"temperature": 0.0}, "above 0"),
        ("jsd", {"beta": 1.5}, "forward KL"),
        ("jsd", {"scale": "trl"}, "continuous, gkd"),
        ("skewed_kl", {"alpha": 1.0}, "below 1"),
        ("skewed_reverse_kl", {"alpha": -0.1}, "at least 0"),
        ("adaptive_kl", {"mu": 1.0}, "below 1"),
        ("adaptive_kl", {"head_size": 0}, "at least 1"),
    ],
)
def test_values_out_of_range_are_refused(name, options, words):
    with pytest.raises(ConfigError, match=words):
        getattr(F, name)(torch.zeros(1, 2), torch.zeros(1, 2), **options)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="xtoken"):
        check_rows(torch.zeros(1, 2), torch.zeros(1, 3), same_width=True)
    with pytest.raises(ConfigError, match="as many rows"):
        check_rows(torch.zeros(1, 2), torch.zeros(2, 2), same_width=False)
