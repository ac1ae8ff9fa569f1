"""`cdm_loss` and its parts against the float64 oracle, by hand, and where nothing is paired."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.cdm import compiled, group_rows, row_norm_entropy, row_summary
from crosstill.functional.embedspace import cosine_distance, shared_space
from crosstill.functional.topk import top_ids
from crosstill.kernels import row_summary as kernel
from oracle import cdm as oracle
from oracle import dtw

SEEDS = st.integers(0, 2**20)


def random_case(seed, groups=4, pairs=5, student=9, teacher=11, dtype=torch.float64):
    """Logits and one-to-one pairs; the last group has none."""
    g = torch.Generator().manual_seed(seed)
    logits = [
        3 * torch.randn(groups, size, generator=g, dtype=torch.float64)
        for size in (student, teacher)
    ]
    ids = [
        torch.stack([torch.randperm(size, generator=g)[:pairs] for _ in range(groups)])
        for size in (student, teacher)
    ]
    count = torch.randint(1, pairs + 1, (groups, 1), generator=g)
    count[-1] = 0
    mapped = torch.arange(pairs) < count
    return [values.to(dtype) for values in logits], ids, mapped


def pairs_of(ids, mapped, group):
    return [
        (int(s), int(t))
        for s, t, there in zip(ids[0][group], ids[1][group], mapped[group], strict=True)
        if there
    ]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
def test_equals_the_oracle(temperature, dtype, tolerance):
    for seed in range(4):
        (student, teacher), ids, mapped = random_case(seed, dtype=dtype)
        weight = torch.rand(4, generator=torch.Generator().manual_seed(seed)).to(dtype)
        loss = F.cdm_loss(
            student, teacher, *ids, mapped, temperature=temperature, weight=weight
        )  # fmt: skip
        expected, outside = 0.0, [0.0, 0.0]
        for g, w in enumerate(weight.tolist()):
            pairs = pairs_of(ids, mapped, g)
            expected += w * oracle.divergence(student[g], teacher[g], pairs, temperature)
            outside[0] += w * oracle.unmapped(student[g], [s for s, _ in pairs])
            outside[1] += w * oracle.unmapped(teacher[g], [t for _, t in pairs])
        assert loss.total.dtype == dtype
        assert loss.total.item() == pytest.approx(expected, rel=tolerance)
        assert loss.count.item() == pytest.approx(sum(weight.tolist()), rel=1e-6)
        found = loss.sums["unmapped_student"].item(), loss.sums["unmapped_teacher"].item()
        assert found == pytest.approx(outside, rel=tolerance)


def test_two_rows_of_three_tokens_by_hand():
    student = torch.tensor([[1.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[0.0, 1.0, 9.0], [math.log(3.0), 0.0, 0.0]])
    ids = torch.tensor([[0, 1], [0, 2]])
    loss = F.cdm_loss(student, teacher, ids, ids, torch.ones(2, 2, dtype=torch.bool))
    # Row 0: (e, 1)/(1 + e) and (1, e)/(1 + e): (e - 1)/(e + 1). Row 1: (3/4, 1/4) and (1/2, 1/2).
    first = (math.e - 1) / (math.e + 1)
    second = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss.total.item() == pytest.approx(first + second, rel=1e-5)
    assert loss.count.item() == 2


@given(SEEDS)
def test_a_constant_on_one_side_changes_nothing(seed):
    (student, teacher), ids, mapped = random_case(seed)
    plain = F.cdm_loss(student, teacher, *ids, mapped, temperature=1.7)
    for moved in (
        (student + 5.0, teacher),
        (student, teacher - 2.0),
        (student + torch.arange(4.0).unsqueeze(1), teacher),
    ):
        loss = F.cdm_loss(*moved, *ids, mapped, temperature=1.7)
        assert loss.total.item() == pytest.approx(plain.total.item(), rel=1e-12)
        for name, value in plain.sums.items():
            assert loss.sums[name].item() == pytest.approx(value.item(), rel=1e-9)


@given(SEEDS, st.sampled_from([0.5, 1.0, 3.0]))
def test_equal_models_have_no_loss_and_no_gradient(seed, temperature):
    (student, _), ids, mapped = random_case(seed)
    student.requires_grad_()
    loss = F.cdm_loss(student, student, ids[0], ids[0], mapped, temperature=temperature)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.item() == 0.0
    assert gradient.abs().max() < 1e-12


@given(SEEDS)
def test_it_is_never_negative_and_the_order_of_pairs_changes_nothing(seed):
    (student, teacher), ids, mapped = random_case(seed)
    loss = F.cdm_loss(student, teacher, *ids, mapped)
    assert loss.total.item() >= 0.0
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    again = F.cdm_loss(student, teacher, *(side[:, order] for side in ids), mapped[:, order])
    assert again.total.item() == pytest.approx(loss.total.item(), rel=1e-12)


def test_the_gradient_is_that_of_the_function():
    (student, teacher), ids, mapped = random_case(3)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: F.cdm_loss(x, teacher, *ids, mapped, temperature=1.3).total, student
    )


def test_the_teacher_gets_no_gradient_and_columns_outside_the_pairs_neither():
    (student, teacher), ids, mapped = random_case(4)
    student.requires_grad_()
    teacher.requires_grad_()
    F.cdm_loss(student, teacher, *ids, mapped).total.backward()
    assert teacher.grad is None
    inside = torch.zeros_like(student, dtype=torch.bool).scatter_(1, ids[0], mapped)
    assert student.grad[inside].any()
    assert not student.grad[~inside].any()


@pytest.mark.parametrize("value", [-torch.inf, torch.nan], ids=["minus infinity", "nan"])
def test_columns_that_are_no_pairs_are_not_read(value):
    (student, teacher), ids, mapped = random_case(5)
    plain = F.cdm_loss(student, teacher, *ids, mapped)
    dirty = student.clone()
    dirty[3, ids[0][3]] = value  # the group without a pair
    dirty.requires_grad_()
    loss = F.cdm_loss(dirty, teacher, *ids, mapped)
    (gradient,) = torch.autograd.grad(loss.total, dirty)
    assert loss.total.item() == plain.total.item()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("side", [0, 1], ids=["student", "teacher"])
@pytest.mark.parametrize("columns", [1, 5], ids=["one", "all"])
def test_impossible_tokens_leave_everything_finite(side, columns):
    logits, ids, mapped = random_case(6)
    mapped[0] = True
    logits[side][0, ids[side][0, :columns]] = -torch.inf
    logits[0].requires_grad_()
    loss = F.cdm_loss(*logits, *ids, mapped)
    (gradient,) = torch.autograd.grad(loss.total, logits[0])
    assert loss.total.isfinite()
    assert gradient.isfinite().all()
    assert all(value.isfinite() for value in loss.sums.values())


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0)], ids=str)
def test_nothing_is_zero_with_a_graph(shape):
    student = torch.zeros(shape[0], 4, requires_grad=True)
    ids = torch.zeros(shape, dtype=torch.int64)
    loss = F.cdm_loss(student, torch.zeros(shape[0], 4), ids, ids, ids > 0)
    assert loss.total.item() == 0.0
    assert loss.count.item() == shape[0]
    assert loss.sums["unmapped_teacher"].item() == pytest.approx(shape[0])
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert not gradient.any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_none_is_refused(temperature):
    (student, teacher), ids, mapped = random_case(7)
    with pytest.raises(ConfigError, match="temperature"):
        F.cdm_loss(student, teacher, *ids, mapped, temperature=temperature)


def test_bfloat16_is_summed_in_float32():
    (student, teacher), ids, mapped = random_case(8, dtype=torch.bfloat16)
    loss = F.cdm_loss(student, teacher, *ids, mapped)
    exact = F.cdm_loss(student.double(), teacher.double(), *ids, mapped)
    assert loss.total.dtype == torch.float32
    assert loss.total.item() == pytest.approx(exact.total.item(), rel=1e-5)


@given(SEEDS)
def test_norms_and_entropies_equal_the_oracle(seed):
    (logits, _), _, _ = random_case(seed)
    logits[0, 0] = -torch.inf
    before = logits.clone()
    norm, entropy = row_norm_entropy(logits)
    assert entropy.tolist() == pytest.approx([dtw.entropy(row) for row in logits.tolist()])
    assert norm.tolist() == pytest.approx(logits.logsumexp(1).tolist())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("size", [3, 700, 9000])
@pytest.mark.parametrize("bad", [None, -torch.inf, torch.inf, torch.nan], ids=str)
def test_both_ways_to_a_summary_of_rows_agree(size, bad, monkeypatch):
    logits = 3 * torch.randn(4, size, generator=torch.Generator().manual_seed(size))
    if bad is not None:
        logits[2, 1] = bad
    logits.requires_grad_()
    found = row_summary(logits, 5)
    monkeypatch.setattr(kernel, "available", lambda: False)
    assert not compiled(logits)
    expected = row_summary(logits, 5)
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert one.dtype == torch.float32
        assert not one.requires_grad
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_summary_of_rows_in_every_type(dtype):
    logits = (3 * torch.randn(4, 700, generator=torch.Generator().manual_seed(2))).to(dtype)
    ids, norm, entropy = row_summary(logits, 9)
    assert compiled(logits) == (dtype != torch.float64 and kernel.available())
    exact = row_norm_entropy(logits.double())
    values = logits.gather(1, ids)
    assert torch.equal(values, logits.sort(1, descending=True).values[:, :9])
    assert norm.dtype == entropy.dtype == torch.promote_types(dtype, torch.float32)
    assert norm.tolist() == pytest.approx(exact[0].tolist(), rel=1e-6)
    assert entropy.tolist() == pytest.approx(exact[1].tolist(), rel=1e-6)


def test_group_rows_by_hand():
    rows = torch.tensor([[2.0, 0.0], [4.0, 2.0], [5.0, 7.0]])
    group, weight = torch.tensor([1, 1, 0]), torch.tensor([0.25, 0.75, 1.0])
    assert group_rows(rows, group, weight, 3).tolist() == [[5.0, 7.0], [3.5, 1.5], [0.0, 0.0]]


@pytest.mark.parametrize("size", [5, 64, 700, 1000], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_top_ids_are_those_of_a_sort(size, dtype):
    g = torch.Generator().manual_seed(size)
    logits = torch.randn(6, size, generator=g).to(dtype)
    found = top_ids(logits, 10)
    assert found.shape == (6, min(10, size))
    values = logits.gather(1, found)
    expected = logits.sort(1, descending=True).values[:, : found.shape[1]]
    assert torch.equal(values, expected)
    for row, ids in zip(logits.double().tolist(), found.tolist(), strict=True):
        assert len(set(ids)) == len(ids)
        assert ids == sorted(ids, key=lambda id, row=row: (-row[id], id))


def test_top_ids_where_one_block_holds_them_all():
    logits = torch.zeros(1, 3200)
    logits[0, torch.arange(0, 3200, 100)] = torch.arange(32.0) + 1  # all in the columns 0 mod 100
    assert top_ids(logits, 32)[0].tolist() == list(range(3100, -1, -100))


def test_the_space_equals_the_oracle():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(12, 5)), rng.normal(size=(14, 7))
    shared = np.array([[i, 13 - i] for i in range(9)])
    found = shared_space(*map(torch.tensor, (student, teacher, shared)))
    expected = oracle.shared_space(student, teacher, shared)
    cosine = (found[0] @ found[1].T).numpy()
    assert cosine == pytest.approx(expected[0] @ expected[1].T, abs=1e-9)
    distance = cosine_distance(found[0].unsqueeze(0), found[1].unsqueeze(0))[0].numpy()
    assert distance == pytest.approx((1 - cosine) / 2, abs=1e-12)


def test_a_turned_and_scaled_embedding_is_found_again():
    rng = np.random.default_rng(1)
    student = torch.tensor(rng.normal(size=(30, 6)))
    turn = torch.tensor(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    teacher = 4.0 * student @ turn + 2.0
    shared = torch.arange(20).unsqueeze(1).expand(-1, 2)
    one, two = shared_space(student, teacher, shared)
    assert torch.allclose((one * two).sum(1), torch.ones(30, dtype=torch.float64))  # the rest too


def test_a_space_without_shared_tokens_is_refused():
    with pytest.raises(ConfigError, match="at least 2 tokens"):
        shared_space(torch.ones(3, 2), torch.ones(3, 2), torch.zeros(1, 2, dtype=torch.int64))
