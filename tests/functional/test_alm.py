"""`alm_loss` against the float64 oracle, by hand, and where nothing is left to compare."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from functional.cases import random_case
from oracle import alm as oracle

TEMPERATURES = [1.0, 5.0, 100.0, math.inf]


def scores(case):
    logprob = F.token_logprobs(case.logits, case.student_ids)
    return logprob, F.boundary_logmass(case.logits, case.mask)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("merge_threshold", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("debias", [True, False])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_equals_the_oracle(divergence, temperature, debias, merge_threshold, dtype, tolerance):
    for seed in range(3):
        case = random_case(seed)
        logprob, boundary = (x.to(dtype) for x in scores(case))
        teacher, after = case.teacher_logprob.to(dtype), case.teacher_boundary.to(dtype)
        options = {
            "temperature": temperature,
            "divergence": divergence,
            "merge_threshold": merge_threshold,
        }
        loss = F.alm_loss(
            logprob,
            teacher,
            case.student_chunk,
            case.teacher_chunk,
            student_boundary=boundary if debias else None,
            teacher_boundary=after,
            **options,
        )
        total, count = oracle.alm(
            logprob.double().numpy(),
            teacher.double().numpy(),
            case.student_chunk.numpy(),
            case.teacher_chunk.numpy(),
            student_boundary=boundary.double().numpy() if debias else None,
            teacher_boundary=after.double().numpy(),
            **options,
        )
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.count.item() == count > 0
        assert loss.total.dtype == dtype


def test_two_rows_of_three_tokens_by_hand():
    # Row 0: chunk 0 is student tokens 1, 2 and teacher token 1. Row 1: two chunks of one token.
    student = torch.tensor([[0.0, -1.0, -2.0], [0.0, -0.5, -4.0]])
    teacher = torch.tensor([[0.0, -2.0, -9.0], [0.0, -1.5, -3.0]])
    student_chunk = torch.tensor([[-1, 0, 0], [-1, 0, 1]])
    teacher_chunk = torch.tensor([[-1, 0, -1], [-1, 0, 1]])
    loss = F.alm_loss(
        student,
        teacher,
        student_chunk,
        teacher_chunk,
        temperature=math.inf,
        divergence="total_variation",
    )
    # |-2 - -3| + |-1.5 - -0.5| + |-3 - -4|
    assert loss.total.item() == pytest.approx(3.0, abs=1e-5)
    assert loss.count.item() == 3
    assert loss.mean().item() == pytest.approx(1.0, abs=1e-5)
    assert loss.sums["gap"].item() == pytest.approx(3.0)


def test_kl_of_one_chunk_by_hand():
    half, quarter = math.log(0.5), math.log(0.25)
    loss = F.alm_loss(
        torch.tensor([[0.0, quarter]]),
        torch.tensor([[0.0, half]]),
        torch.tensor([[-1, 0]]),
        torch.tensor([[-1, 0]]),
        temperature=1.0,
    )
    expected = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    assert loss.total.item() == pytest.approx(expected, abs=3e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_zero_at_equality_with_zero_gradient(divergence, temperature):
    case = random_case(5, student=11, dtype=torch.float32)
    logprob = case.teacher_logprob.clone().requires_grad_()
    loss = F.alm_loss(
        logprob,
        case.teacher_logprob,
        case.teacher_chunk,
        case.teacher_chunk,
        temperature=temperature,
        divergence=divergence,
    )
    loss.total.backward()
    assert loss.total.item() == 0.0
    assert loss.count > 0
    assert logprob.grad is not None
    assert logprob.grad.abs().max() < 1e-5


def test_merging_by_hand():
    chunk = torch.tensor([[-1, 0, 1, 2, 3]])
    mass = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.2]]).log()
    student, teacher = F.merge_chunks(chunk, chunk, mass, 0.5)
    # Chunk 1 ends accepted; 0.5 is not above 0.5; chunks 2 and 3 stay as the trailing one.
    assert student.tolist() == teacher.tolist() == [[-1, 0, 0, 1, 1]]


def test_the_boundary_of_a_merged_chunk_is_that_of_its_last_source_chunk():
    chunk = torch.tensor([[-1, 0, 1]])
    zero = torch.zeros(1, 3)
    loss = F.alm_loss(
        zero,
        zero,
        chunk,
        chunk,
        student_boundary=torch.tensor([[-7.0, -7.0, -2.0]]),
        teacher_boundary=torch.tensor([[-7.0, -7.0, -1.0]]),
        temperature=math.inf,
        divergence="total_variation",
        merge_threshold=0.1,
    )
    assert loss.count.item() == 1
    assert loss.total.item() == pytest.approx(1.0, abs=1e-5)


def test_count_is_that_of_the_merged_chunks():
    chunk = torch.tensor([[-1, 0, 1, 2, 3, 4]])
    logprob = -torch.ones(1, 6)
    after = torch.tensor([[0.0, 0.01, 0.9, 0.01, 0.9, 0.01]]).log()
    loss = F.alm_loss(logprob, logprob, chunk, chunk, teacher_boundary=after, merge_threshold=0.1)
    assert loss.count.item() == 3


def test_position_zero_has_no_likelihood():
    chunk = torch.tensor([[0, 1]])
    logprob = torch.tensor([[-5.0, -1.0]])
    loss = F.alm_loss(logprob, logprob * 2, chunk, chunk, temperature=math.inf)
    alone = F.alm_loss(logprob, logprob * 2, torch.tensor([[-1, 0]]), torch.tensor([[-1, 0]]),
                       temperature=math.inf)  # fmt: skip
    assert loss.count.item() == 1
    assert torch.equal(loss.total, alone.total)


def test_a_chunk_of_one_side_only_is_not_counted():
    logprob = -torch.ones(1, 4)
    loss = F.alm_loss(
        logprob, logprob, torch.tensor([[-1, 0, 1, 2]]), torch.tensor([[-1, 0, -1, 2]])
    )
    assert loss.count.item() == 2


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (2, 1), (1, 4)])
def test_empty_things_give_zero_with_a_graph(shape):
    logprob = torch.full(shape, -1.0, requires_grad=True)
    outside = torch.full(shape, -1)
    loss = F.alm_loss(
        logprob,
        logprob.detach(),
        outside,
        outside,
        student_boundary=logprob,
        teacher_boundary=logprob.detach(),
        merge_threshold=0.1,
    )
    loss.mean().backward()
    assert loss.total.item() == loss.count.item() == loss.mean().item() == 0
    assert logprob.grad is not None
    assert not logprob.grad.any()


def test_what_stands_outside_chunks_has_no_effect():
    case = random_case(1, dtype=torch.float32)
    logprob, boundary = (x.detach() for x in scores(case))
    chunks = (case.student_chunk, case.teacher_chunk)

    def run(logprob, teacher):
        logprob = logprob.clone().requires_grad_()
        loss = F.alm_loss(logprob, teacher, *chunks, student_boundary=boundary,
                          teacher_boundary=case.teacher_boundary)  # fmt: skip
        loss.total.backward()
        return loss.total.detach(), logprob.grad

    plain = run(logprob, case.teacher_logprob)
    dirty = run(
        logprob.masked_fill(case.student_chunk < 0, -torch.inf),
        case.teacher_logprob.masked_fill(case.teacher_chunk < 0, torch.nan),
    )
    assert torch.equal(plain[0], dirty[0])
    assert torch.equal(plain[1], dirty[1])
    assert not plain[1][case.student_chunk < 0].any()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_minus_infinity_inside_a_chunk_is_finite_and_gets_no_gradient(divergence, temperature):
    student = torch.tensor([[0.0, -torch.inf, -1.0]], requires_grad=True)
    chunk = torch.tensor([[-1, 0, 1]])
    loss = F.alm_loss(
        student,
        torch.tensor([[0.0, -2.0, -torch.inf]]),
        chunk,
        chunk,
        temperature=temperature,
        divergence=divergence,
    )
    loss.total.backward()
    assert student.grad is not None
    assert loss.total.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad[0, 1] == 0


@given(
    st.lists(st.tuples(*[st.floats(-1000, 0, width=32)] * 2), min_size=1, max_size=8),
    st.sampled_from(TEMPERATURES),
    st.sampled_from(F.DIVERGENCES),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_finite_value_and_gradient_on_the_whole_domain(pairs, temperature, divergence, dtype):
    values = torch.tensor(pairs, dtype=dtype).t()
    logprob = torch.cat([torch.zeros(2, 1, dtype=dtype), values], 1)
    student = logprob[:1].clone().requires_grad_()
    chunk = torch.arange(-1, len(pairs)).unsqueeze(0)
    loss = F.alm_loss(
        student, logprob[1:], chunk, chunk, temperature=temperature, divergence=divergence
    )
    loss.total.backward()
    assert student.grad is not None
    assert loss.total.isfinite()
    assert loss.total >= -1e-6
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
def test_gradcheck(divergence, temperature):
    case = random_case(2, rows=2, student=8, teacher=7)
    logprob, boundary = scores(case)

    def total(logprob, boundary):
        return F.alm_loss(
            logprob,
            case.teacher_logprob,
            case.student_chunk,
            case.teacher_chunk,
            student_boundary=boundary,
            teacher_boundary=case.teacher_boundary,
            temperature=temperature,
            divergence=divergence,
            merge_threshold=0.1,
        ).total

    assert torch.autograd.gradcheck(total, (logprob.requires_grad_(), boundary.requires_grad_()))


def test_a_long_chunk_is_summed_in_float32():
    logprob = -torch.rand(1, 4097, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    chunk = torch.zeros(1, 4097, dtype=torch.long)
    total = F.chunk_loglikelihood(logprob, chunk, 1).item()
    assert total == pytest.approx(logprob[:, 1:].double().sum().item(), rel=1e-6)


def test_the_teacher_gets_no_gradient():
    logprob = torch.tensor([[0.0, -1.0]], requires_grad=True)
    chunk = torch.tensor([[-1, 0]])
    loss = F.alm_loss(logprob, logprob * 2, chunk, chunk, temperature=math.inf,
                      divergence="total_variation")  # fmt: skip
    loss.total.backward()
    assert logprob.grad is not None
    assert logprob.grad[0, 1] == 1.0  # |2x - x| would give -1 through the teacher


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"divergence": "k1"}, "total_variation"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": math.nan}, "above 0"),
        ({"merge_threshold": 0.1}, "teacher_boundary"),
        ({"student_boundary": torch.zeros(1, 2)}, "teacher_boundary"),
    ],
)
def test_errors_name_the_remedy(options, word):
    chunk = torch.tensor([[-1, 0]])
    with pytest.raises(ConfigError, match=word):
        F.alm_loss(torch.zeros(1, 2), torch.zeros(1, 2), chunk, chunk, **options)


def test_nothing_is_read_back_from_the_device():
    # Tensors without storage: `.item()`, `nonzero` and branches on values raise.
    def on_meta(*shape, dtype=torch.float32):
        return torch.zeros(*shape, device="meta", dtype=dtype)

    loss = F.alm_loss(
        on_meta(2, 5),
        on_meta(2, 4),
        on_meta(2, 5, dtype=torch.long),
        on_meta(2, 4, dtype=torch.long),
        student_boundary=on_meta(2, 5),
        teacher_boundary=on_meta(2, 4),
        merge_threshold=0.1,
    )
    assert loss.mean().device.type == "meta"
    assert F.sft_loss(on_meta(2, 5), on_meta(2, 5, dtype=torch.long)).total.device.type == "meta"
