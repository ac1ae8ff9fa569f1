"""`chunk_kl_loss` against the float64 oracle, by hand, and what its gradient is."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from functional.cases import random_case
from oracle import chunk_kl as oracle

OPTIONS = [
    {},
    {"credit": "prior"},
    {"clip": 0.5},
    {"clip": math.inf},
    {"credit": "prior", "clip": 0.2},
]


def sides(seed, dtype=torch.float64, **shape):
    case = random_case(seed, **shape)
    logprob = F.token_logprobs(case.logits, case.student_ids).to(dtype)
    return logprob, case.teacher_logprob.to(dtype), case.student_chunk, case.teacher_chunk


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_oracle(options, dtype, tolerance):
    for seed in range(4):
        args = sides(seed, dtype)
        loss = F.chunk_kl_loss(*args, **options)
        total, count, gap, ratio, _ = oracle.chunk_kl(*(x.tolist() for x in args), **options)
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.count.item() == count > 0
        assert loss.sums["gap"].item() == pytest.approx(gap, rel=tolerance)
        assert loss.sums["log_ratio"].item() == pytest.approx(ratio, rel=tolerance, abs=1e-5)
        assert loss.total.dtype == dtype


@pytest.mark.parametrize("options", OPTIONS)
def test_the_gradient_is_minus_the_credit(options):
    logprob, *rest = sides(5)
    logprob.requires_grad_()
    loss = F.chunk_kl_loss(logprob, *rest, **options)
    (gradient,) = torch.autograd.grad(loss.total, logprob)
    credited = oracle.chunk_kl(logprob.tolist(), *(x.tolist() for x in rest), **options)[-1]
    expected = torch.zeros_like(gradient)
    for place, value in credited.items():
        expected[place] = -oracle.clipped(value, options.get("clip", 10.0))
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_equal_shares_have_the_gradient_of_the_squared_difference():
    # 1/2 d^2 / m: a plain function of the log-probabilities, so gradcheck can see it.
    logprob = torch.tensor([[0.0, -1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, -4.0, -0.1]], dtype=torch.float64)
    chunks = torch.tensor([[-1, 0, 0, 1]]), torch.tensor([[-1, 0, 1]])
    gap = teacher[0, 1:] - torch.stack([logprob[0, 1] + logprob[0, 2], logprob[0, 3]])
    squared = (gap.square() / torch.tensor([2.0, 1.0])).sum() / 2
    loss = F.chunk_kl_loss(logprob, teacher, *chunks)
    assert loss.total.item() == pytest.approx(squared.item())
    for one, two in zip(
        torch.autograd.grad(squared, logprob), torch.autograd.grad(loss.total, logprob), strict=True
    ):
        assert torch.allclose(one, two)


def test_gradcheck_where_each_chunk_is_one_token():
    # There the credit is the whole difference, and what is held fixed is the teacher alone.
    student = torch.tensor([[0.0, -1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, -4.0, -0.1, -0.2]], dtype=torch.float64)
    chunk = torch.tensor([[-1, 0, 1, 2]])
    target = teacher.clone()

    def total(student):
        return torch.nn.functional.huber_loss(student[:, 1:], target[:, 1:], reduction="sum")

    (expected,) = torch.autograd.grad(total(student), student)
    loss = F.chunk_kl_loss(student, teacher, chunk, chunk, clip=1.0)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert torch.autograd.gradcheck(total, (student,))
    assert torch.allclose(gradient, expected)
    assert loss.total.item() == pytest.approx(total(student).item())


def test_on_the_students_own_samples_the_gradient_is_that_of_the_reverse_kl():
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(6, generator=g, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(6, generator=g, dtype=torch.float64).log_softmax(-1)
    own = logits.log_softmax(-1)
    # Every token once, weighted by the student's probability: the expectation, summed exactly.
    chunk = torch.tensor([[-1, 0]])
    expected = torch.zeros(6, dtype=torch.float64)
    for token in range(6):
        row = torch.stack([own.new_zeros(()), own[token]]).unsqueeze(0)
        theirs = torch.tensor([[0.0, teacher[token]]], dtype=torch.float64)
        loss = F.chunk_kl_loss(row, theirs, chunk, chunk, clip=math.inf)
        (part,) = torch.autograd.grad(loss.total, logits, retain_graph=True)
        expected += own[token].exp().detach() * part
    reverse = F.reverse_kl(logits.unsqueeze(0), teacher.unsqueeze(0)).total
    (gradient,) = torch.autograd.grad(reverse, logits)
    assert torch.allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
def test_zero_at_equality_with_zero_gradient(options):
    logprob, _, chunk, _ = sides(6, torch.float32)
    student = logprob.clone().requires_grad_()
    loss = F.chunk_kl_loss(student, logprob, chunk, chunk, **options)
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert loss.count > 0
    assert not student.grad.any()


@settings(max_examples=25)
@given(
    st.lists(st.tuples(*[st.floats(-1000, 0, width=32)] * 2), min_size=1, max_size=8),
    st.sampled_from(OPTIONS),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_finite_on_the_whole_domain(pairs, options, dtype):
    values = torch.tensor(pairs, dtype=dtype).t()
    logprob = torch.cat([torch.zeros(2, 1, dtype=dtype), values], 1)
    student = logprob[:1].clone().requires_grad_()
    chunk = torch.arange(-1, len(pairs)).div(2, rounding_mode="floor").unsqueeze(0)
    loss = F.chunk_kl_loss(student, logprob[1:], chunk, chunk, **options)
    loss.total.backward()
    assert loss.total.isfinite()
    assert loss.total >= 0
    assert student.grad.isfinite().all()


def test_a_student_that_is_sure_shares_equally():
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.0, -1.0, -1.0]])
    chunk = torch.tensor([[-1, 0, 0]])
    F.chunk_kl_loss(student, teacher, chunk, chunk, credit="prior").total.backward()
    assert student.grad.tolist() == [[0.0, 1.0, 1.0]]


def test_minus_infinity_is_finite_and_gets_no_gradient():
    student = torch.tensor([[0.0, -torch.inf, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, -2.0, -torch.inf]])
    chunk = torch.tensor([[-1, 0, 1]])
    loss = F.chunk_kl_loss(student, teacher, chunk, chunk)
    loss.total.backward()
    assert loss.total.isfinite()
    assert student.grad[0].tolist() == [0.0, 0.0, 10.0]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 1), (1, 4)])
def test_empty_things_give_zero_with_a_graph(shape):
    logprob = torch.full(shape, -1.0, requires_grad=True)
    outside = torch.full(shape, -1)
    loss = F.chunk_kl_loss(logprob, logprob.detach(), outside, outside)
    loss.mean().backward()
    assert loss.total.item() == loss.count.item() == 0
    assert not logprob.grad.any()


def test_nothing_is_read_back_from_the_device():
    def on_meta(*shape, dtype=torch.float32):
        return torch.zeros(*shape, device="meta", dtype=dtype)

    chunks = on_meta(2, 5, dtype=torch.long), on_meta(2, 4, dtype=torch.long)
    loss = F.chunk_kl_loss(on_meta(2, 5), on_meta(2, 4), *chunks, credit="prior")
    assert loss.mean().device.type == "meta"


@pytest.mark.parametrize(
    ("options", "words"), [({"credit": "last"}, "equal, prior"), ({"clip": 0.0}, "above 0")]
)
def test_values_out_of_range_are_refused(options, words):
    chunk = torch.tensor([[-1, 0]])
    with pytest.raises(ConfigError, match=words):
        F.chunk_kl_loss(torch.zeros(1, 2), torch.zeros(1, 2), chunk, chunk, **options)
