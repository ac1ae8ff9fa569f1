"""`simct_loss` against the float64 oracle, by hand, and at its edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from oracle import simct as oracle

SHARED = torch.tensor([[0, 2], [1, 0], [4, 1], [5, 6]])


def case(seed=0, rows=5, dtype=torch.float64, spread=2.0):
    """(arguments of the function, lists of each chunk's log-probabilities)."""
    g = torch.Generator().manual_seed(seed)
    logits = [
        (spread * torch.randn(rows, v, generator=g, dtype=torch.float64)).to(dtype) for v in (8, 9)
    ]
    is_span = torch.rand(rows, generator=g) < 0.6
    lists = []
    for _ in range(2):
        sizes = torch.randint(1, 4, (rows,), generator=g).tolist()
        lists.append([(-3 * torch.rand(n, generator=g)).tolist() for n in sizes])
    means = [torch.tensor([sum(x) / len(x) for x in side], dtype=dtype) for side in lists]
    spans = [
        [x if wanted else None for x, wanted in zip(side, is_span.tolist(), strict=True)]
        for side in lists
    ]
    return [*logits, SHARED, *means, is_span], spans


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("divergence", ["kl", "reverse_kl"])
def test_equals_the_oracle(divergence, temperature, dtype, tolerance):
    options = {"divergence": divergence, "temperature": temperature}
    for seed in range(4):
        args, spans = case(seed, dtype=dtype)
        loss = F.simct_loss(*args, **options)
        total, mass, number = oracle.simct(
            args[0].tolist(), args[1].tolist(), SHARED.tolist(), *spans, **options
        )
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.sums["shared_mass"].item() == pytest.approx(mass, rel=tolerance)
        assert loss.sums["spans"] == number
        assert loss.count == len(args[0])
        assert loss.total.dtype == dtype


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl"])
def test_gradcheck(divergence):
    args, _ = case(5, rows=3)
    student, teacher, shared, own, theirs, is_span = args
    is_span[0] = True

    def total(student, own):
        args = (student, teacher, shared, own, theirs, is_span)
        return F.simct_loss(*args, divergence=divergence, temperature=1.5).total

    assert torch.autograd.gradcheck(total, (student.requires_grad_(), own.requires_grad_()))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 30.0), st.sampled_from(["kl", "reverse_kl"]))
def test_never_negative_and_blind_to_a_constant_and_to_order(seed, spread, divergence):
    args, _ = case(seed, rows=3, spread=spread)
    value = F.simct_loss(*args, divergence=divergence).total.item()
    assert value >= -1e-12
    shifted = F.simct_loss(args[0] + 7.0, args[1] - 3.0, *args[2:], divergence=divergence)
    assert shifted.total.item() == pytest.approx(value, rel=1e-7, abs=1e-9)
    args[2] = SHARED.flip(0)
    again = F.simct_loss(*args, divergence=divergence).total.item()
    assert again == pytest.approx(value, rel=1e-9, abs=1e-12)


def test_zero_for_equal_models():
    args, _ = case(6, dtype=torch.float32)
    student = args[0].requires_grad_()
    both = torch.arange(8).unsqueeze(-1).expand(-1, 2)
    loss = F.simct_loss(student, student.detach(), both, args[3], args[3], args[5])
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert abs(loss.total.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_with_one_vocabulary_and_no_span_it_is_the_forward_kl():
    (student, *_), _ = case(7)
    teacher = student.flip(0)
    both = torch.arange(8).unsqueeze(-1).expand(-1, 2)
    none, no = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.bool)
    loss = F.simct_loss(student, teacher, both, none, none, no)
    assert torch.allclose(loss.total, F.forward_kl(student, teacher).total, rtol=1e-12)


def test_what_stands_where_no_span_is_has_no_effect():
    args, _ = case(8)
    args[5][:] = torch.tensor([True, False, True, False, True])
    plain = F.simct_loss(*args).total
    for side in (3, 4):
        args[side] = args[side].masked_fill(~args[5], torch.nan)
    args[3].requires_grad_()
    loss = F.simct_loss(*args)
    (gradient,) = torch.autograd.grad(loss.total, args[3])
    assert torch.equal(loss.total, plain)
    assert not gradient[~args[5]].any()
    assert gradient[args[5]].all()


def test_minus_infinity_is_finite():
    args, _ = case(9, dtype=torch.float32)
    args[0][0, :5], args[1][0, 1:4] = -torch.inf, -torch.inf
    args[0][1], args[1][2] = -torch.inf, -torch.inf
    args[3][3], args[4][4] = -torch.inf, -torch.inf
    args[0].requires_grad_()
    args[3].requires_grad_()
    loss = F.simct_loss(*args)
    assert loss.total.isfinite()
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss.total, (args[0], args[3])))


def test_no_row_gives_zero_with_a_graph():
    args, _ = case(10)
    args = [x if x is SHARED else x[:0] for x in args]
    args[0].requires_grad_()
    loss = F.simct_loss(*args)
    loss.mean().backward()
    assert loss.total.item() == loss.count.item() == 0
    assert args[0].grad is not None


def test_nothing_is_read_back_from_the_device():
    args, _ = case(11, dtype=torch.float32)
    loss = F.simct_loss(*(x.to("meta") for x in args))
    assert loss.total.device.type == "meta"


def test_two_rows_of_three_tokens_by_hand():
    # Shared: student 0 and 1 are teacher 1 and 0. Row 1 is a span as well.
    student = torch.tensor([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], dtype=torch.float64).log()
    spans = [torch.tensor([0.0, math.log(x)], dtype=torch.float64) for x in (0.2, 0.4)]
    shared, is_span = torch.tensor([[0, 1], [1, 0]]), torch.tensor([False, True])
    loss = F.simct_loss(student, teacher, shared, *spans, is_span)
    # Row 0: (0.25, 0.75) against (2/3, 1/3). Row 1: (3, 1, 4) / 8 against (4, 2, 2) / 8.
    first = 0.25 * math.log(0.375) + 0.75 * math.log(2.25)
    second = 3 / 8 * math.log(3 / 4) + 1 / 8 * math.log(1 / 2) + 4 / 8 * math.log(2)
    assert loss.total.item() == pytest.approx(first + second)
    assert loss.sums["shared_mass"].item() == pytest.approx(0.8 + 0.4)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"divergence": "jsd"}, "kl, reverse_kl"), ({"temperature": 0.0}, "above 0")],
)
def test_values_out_of_range_are_refused(options, words):
    args, _ = case(12)
    with pytest.raises(ConfigError, match=words):
        F.simct_loss(*args, **options)
