"""`dskd_loss` and its pieces against the float64 oracle, by hand, and where gradients go."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional import eager
from crosstill.functional.dskd import (
    cross_model_attention,
    inside_deviation,
    logit_projection,
    pseudo_inverse,
)
from oracle import dskd as oracle


def normal(seed, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def given_rows(seed, dtype=torch.float64, rows=4, teacher_rows=3):
    """Positional arguments and heads of a random case: Ds 3, Dt 4, Vs 5, Vt 7."""
    values = {
        "projected_teacher": normal(seed, rows, 3, dtype=dtype),
        "projected_student": normal(seed + 1, teacher_rows, 4, dtype=dtype),
        "student_logits": normal(seed + 2, rows, 5, dtype=dtype),
        "teacher_logits": normal(seed + 3, teacher_rows, 7, dtype=dtype),
        "target": torch.tensor([1, -1, 4, 0])[:rows],
    }
    # one row whose projection agrees with its target
    weight = normal(seed + 4, 5, 3, dtype=dtype)
    if rows:
        values["projected_teacher"][0] = 3 * weight[1]
        weight[1] *= 4
    heads = {
        "student_head": F.HeadMatrix(weight),
        "teacher_head": F.HeadMatrix(normal(seed + 5, 7, 4, dtype=dtype)),
    }
    return values, heads


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("divergence", F.DSKD_DIVERGENCES)
def test_equals_the_oracle(divergence, agreement, dtype, tolerance):
    for seed in range(3):
        values, heads = given_rows(10 * seed, dtype)
        options = {"temperature": 2.0 if seed else 1.0, "teacher_divergence": divergence}
        loss = F.dskd_loss(**values, **heads, **options, divergence=divergence, agreement=agreement)
        terms = oracle.dskd(
            *(value.tolist() for value in values.values()),
            heads["student_head"].weight.tolist(),
            heads["teacher_head"].weight.tolist(),
            **options,
            divergence_name=divergence,
            agreement=agreement,
        )
        ce, kd, agreeing, back = terms
        assert loss.total.item() == pytest.approx(ce + kd + back, rel=tolerance)
        assert loss.total.dtype == dtype
        assert loss.count == 4
        assert loss.sums["agreement"] == agreeing > 0
        for name, term in (("target", ce), ("student_space", kd), ("teacher_space", back)):
            assert loss.sums[name].item() == pytest.approx(term, rel=tolerance)


def test_two_rows_of_three_tokens_by_hand():
    # heads that hand the states on: the projected states are the logits
    head = F.HeadMatrix(torch.eye(3))
    log2, log3 = math.log(2), math.log(3)
    projected_teacher = torch.tensor([[log2, 0.0, 0.0], [0.0, 0.0, log2]])
    student = torch.zeros(2, 3)
    teacher = torch.tensor([[0.0, 0.0, 0.0], [log3, 0.0, 0.0]])
    loss = F.dskd_loss(
        projected_teacher, student, student, teacher, torch.tensor([0, 1]),
        student_head=head, teacher_head=head, temperature=1.0, agreement=True,
    )  # fmt: skip
    # -log(1/2) and -log(1/4); the first row alone agrees
    assert loss.sums["target"].item() == pytest.approx(3 * log2)
    # (1/2, 1/4, 1/4) from a third each
    assert loss.sums["student_space"].item() == pytest.approx(log3 - 1.5 * log2, rel=1e-5)
    # (3/5, 1/5, 1/5) from a third each, and equal rows
    by_hand = 0.6 * math.log(1.8) + 0.4 * math.log(0.6)
    assert loss.sums["teacher_space"].item() == pytest.approx(by_hand, rel=1e-5)
    assert loss.sums["agreement"] == 1
    assert loss.count == 2


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("divergence", F.DSKD_DIVERGENCES)
def test_gradcheck_through_the_student(divergence, agreement):
    values, heads = given_rows(3)

    def total(projected_student, student_logits):
        changed = {"projected_student": projected_student, "student_logits": student_logits}
        return F.dskd_loss(
            **{**values, **changed}, **heads, divergence=divergence,
            teacher_divergence=divergence, agreement=agreement,
        ).total  # fmt: skip

    inputs = [values[name].requires_grad_() for name in ("projected_student", "student_logits")]
    assert torch.autograd.gradcheck(total, inputs)


def test_gradcheck_of_the_projected_teacher_sees_the_first_term_alone():
    values, heads = given_rows(4)
    states = values["projected_teacher"].requires_grad_()

    def first_term(states):
        logits = states @ heads["student_head"].weight.t()
        known = values["target"] >= 0
        chosen = logits.log_softmax(1)[known, values["target"][known]]
        return -chosen.sum()

    (expected,) = torch.autograd.grad(first_term(states), states)
    loss = F.dskd_loss(**values, **heads)
    (got,) = torch.autograd.grad(loss.total, states)
    assert torch.allclose(got, expected, rtol=1e-12)


def test_neither_the_teacher_nor_a_head_gets_a_gradient():
    values, heads = given_rows(5)
    learned = [value.requires_grad_() for name, value in values.items() if name != "target"]
    weights = [head.weight.requires_grad_() for head in heads.values()]
    F.dskd_loss(**values, **heads).total.backward()
    gradients = [one.grad is not None for one in learned]
    assert gradients == [True, True, True, False]
    assert all(weight.grad is None for weight in weights)


@given(st.integers(0, 10**6), st.sampled_from(F.DSKD_DIVERGENCES), st.floats(-50, 50))
def test_a_constant_on_the_logits_changes_nothing(seed, divergence, constant):
    values, heads = given_rows(seed)
    options = {"divergence": divergence, "teacher_divergence": divergence}
    plain = F.dskd_loss(**values, **heads, **options).total
    values["student_logits"] = values["student_logits"] + constant
    values["teacher_logits"] = values["teacher_logits"] - constant
    assert F.dskd_loss(**values, **heads, **options).total.item() == pytest.approx(
        plain.item(), rel=1e-9
    )


@given(st.integers(0, 10**6), st.sampled_from(F.DSKD_DIVERGENCES))
def test_equal_models_have_no_divergence_in_either_space(seed, divergence):
    values, heads = given_rows(seed, rows=3)
    values["student_logits"] = values["projected_teacher"] @ heads["student_head"].weight.t()
    values["teacher_logits"] = values["projected_student"] @ heads["teacher_head"].weight.t()
    loss = F.dskd_loss(**values, **heads, divergence=divergence, teacher_divergence=divergence)
    assert abs(loss.sums["student_space"]) < 1e-12
    assert abs(loss.sums["teacher_space"]) < 1e-12
    assert loss.sums["target"] > 0


def test_no_row_is_zero_with_a_graph():
    values, heads = given_rows(6, rows=0, teacher_rows=0)
    learned = [values[name].requires_grad_() for name in ("projected_student", "student_logits")]
    loss = F.dskd_loss(**values, **heads)
    loss.total.backward()
    assert loss.total == loss.count == 0
    assert all(one.grad is not None for one in learned)


@pytest.mark.parametrize("divergence", F.DSKD_DIVERGENCES)
def test_impossible_tokens_give_a_finite_loss(divergence):
    values, heads = given_rows(7)
    values["student_logits"][:, 1] = -torch.inf
    values["teacher_logits"][:, 2] = -torch.inf
    values["student_logits"].requires_grad_()
    values["projected_student"].requires_grad_()
    loss = F.dskd_loss(**values, **heads, divergence=divergence, teacher_divergence=divergence)
    loss.total.backward()
    assert loss.total.isfinite()
    for name in ("student_logits", "projected_student"):
        assert values[name].grad.isfinite().all()


def test_many_blocks_of_rows_are_the_sum_of_one(monkeypatch):
    values, heads = given_rows(8)
    values["student_logits"].requires_grad_()

    def run():
        loss = F.dskd_loss(**values, **heads)
        return loss.total, *torch.autograd.grad(loss.total, [values["student_logits"]])

    whole = run()
    monkeypatch.setitem(eager.ELEMENTS, "cpu", 10)
    for one, two in zip(whole, run(), strict=True):
        assert torch.allclose(one, two, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"divergence": "k1"}, "skewed_kl"),
        ({"teacher_divergence": "k1"}, "skewed_kl"),
        ({"temperature": 0.0}, "above 0"),
    ],
)
def test_errors_name_the_remedy(options, word):
    values, heads = given_rows(0)
    with pytest.raises(ConfigError, match=word):
        F.dskd_loss(**values, **heads, **options)


# --- attention, deviations and maps -------------------------------------------------------------


def test_attention_equals_the_oracle_and_is_zero_outside():
    query, key = normal(0, 2, 4, 6), normal(1, 2, 5, 6)
    student_mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]]).bool()
    teacher_mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]]).bool()
    to_student, to_teacher = cross_model_attention(query, key, student_mask, teacher_mask)
    mine, theirs = [0, 1, 3], [1, 2, 4]
    for i in mine:
        scores = [float(query[0, i] @ key[0, j]) / math.sqrt(6) for j in theirs]
        weights = np.exp(oracle.log_softmax(scores))
        assert to_student[0, i, theirs].numpy() == pytest.approx(weights, rel=1e-9)
    for j in theirs:
        scores = [float(query[0, i] @ key[0, j]) / math.sqrt(6) for i in mine]
        weights = np.exp(oracle.log_softmax(scores))
        assert to_teacher[0, j, mine].numpy() == pytest.approx(weights, rel=1e-9)
    assert not to_student[0, 2].any()
    assert not to_student[0, :, [0, 3]].any()
    assert not to_student[1].any()
    assert not to_teacher[1].any()


@given(st.integers(0, 10**6), st.integers(0, 4))
def test_the_deviation_knows_no_padding(seed, extra):
    values = normal(seed, 2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    kept = values[0, mask[0]].tolist()
    found = inside_deviation(values, mask)
    assert found[0].item() == pytest.approx(oracle.deviation(kept), rel=1e-9)
    wide = torch.nn.functional.pad(values, (0, 0, 0, extra), value=7.0)
    wide_mask = torch.nn.functional.pad(mask, (0, extra))
    assert torch.allclose(inside_deviation(wide, wide_mask), found, rtol=1e-12)


def test_a_deviation_of_nothing_is_one():
    values = torch.ones(3, 2, 2)
    mask = torch.tensor([[0, 0], [1, 0], [1, 1]]).bool()
    assert torch.equal(inside_deviation(values, mask).flatten(), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("deficient", [False, True], ids=["full rank", "rank deficient"])
def test_the_pseudo_inverse_is_numpys(dtype, deficient):
    weight = normal(2, 30, 6)
    if deficient:
        weight[:, 5] = weight[:, 0] - weight[:, 1]
    expected = np.linalg.pinv(weight.numpy().T, rcond=1e-6)
    got = pseudo_inverse(weight.to(dtype))
    assert got.dtype == dtype
    assert np.allclose(
        got.double().numpy(), expected, atol=1e-9 if dtype == torch.float64 else 1e-5
    )


def test_fewer_tokens_than_dimensions_still_have_an_inverse():
    weight = normal(3, 2, 5)
    assert np.allclose(pseudo_inverse(weight).numpy(), np.linalg.pinv(weight.numpy().T), atol=1e-9)


def test_the_map_of_logits_gives_the_source_heads_logits():
    # a target head wide enough to say what the source says
    source = F.HeadMatrix(normal(4, 20, 3), logit_scale=2.0)
    mixing = normal(5, 3, 6)
    target = F.HeadMatrix(source.weight @ mixing, logit_scale=0.5)
    found = logit_projection(source, target, pseudo_inverse(target.weight))
    states = normal(6, 4, 3)
    wanted = 2.0 * states @ source.weight.t()
    got = 0.5 * states @ found @ target.weight.t()
    assert torch.allclose(got, wanted, rtol=1e-9)


def test_the_map_of_logits_is_the_least_squares_one():
    source, target = F.HeadMatrix(normal(7, 20, 3)), F.HeadMatrix(normal(8, 20, 4))
    found = logit_projection(source, target, pseudo_inverse(target.weight))
    expected = source.weight.numpy().T @ np.linalg.pinv(target.weight.numpy().T)
    assert np.allclose(found.numpy(), expected, atol=1e-9)
