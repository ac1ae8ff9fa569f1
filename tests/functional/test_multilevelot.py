"""`multilevelot_loss` against the float64 oracle, by hand, and its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional import multilevelot as module
from oracle import multilevelot as oracle


def sequences(seed, sizes=((3, 4), (5, 2), (1, 1)), widths=(9, 7), dtype=torch.float64):
    """(student's rows, teacher's rows) of each sequence."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        [
            (2 * torch.randn(pair[k], widths[k], generator=generator, dtype=torch.float64)).to(
                dtype
            )
            for pair in sizes
        ]
        for k in range(2)
    )


def lists(rows):
    return [x.double().tolist() for x in rows]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("top_k", [4, 50])
@pytest.mark.parametrize("compatible", [False, True])
def test_equals_the_oracle(compatible, top_k, dtype, tolerance):
    student, teacher = sequences(1, dtype=dtype)
    form = F.OtForm(top_k=top_k, log_weight=0.3, transport_weight=0.7, compatible=compatible)
    loss = F.multilevelot_loss(student, teacher, form)
    if compatible:
        expected = oracle.compatible(lists(student), lists(teacher), top_k=top_k)
        expected = [6 * value for value in expected]  # the mean over 6 rows is the authors' value
    else:
        *expected, rows = oracle.parts(lists(student), lists(teacher), top_k=top_k)
        assert loss.count == rows
    assert loss.count == 3 + 2 + 1
    for name, value in zip(("absolute", "logarithmic", "transport"), expected, strict=True):
        assert loss.sums[name].item() == pytest.approx(value, rel=tolerance)
    total = expected[0] + 0.3 * expected[1] + 0.7 * expected[2]
    assert loss.total.item() == pytest.approx(total, rel=tolerance)
    assert loss.total.dtype == dtype


@pytest.mark.parametrize("compatible", [False, True])
def test_gradcheck(compatible):
    student, teacher = sequences(2, sizes=((2, 3), (2, 2)), widths=(5, 4))
    sizes = [len(rows) for rows in student]
    form = F.OtForm(top_k=3, rounds=3, compatible=compatible)
    assert torch.autograd.gradcheck(
        lambda z: F.multilevelot_loss(z.split(sizes), teacher, form).total,
        torch.cat(student).requires_grad_(),
        fast_mode=True,
    )


def test_one_row_of_two_by_three_by_hand():
    # Divided by its deviation ln 2 (+ 1e-4) the row ln 2 * (0, 1, 2) is 0, 1, 2; the other 0, 1.
    student = math.log(2) * torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    p = [math.exp(x) / (1 + math.e + math.e**2) for x in (2, 1)]
    root = math.exp(math.sqrt(2))  # the deviation of (1, 0) is 1 / sqrt(2)
    q = [root / (1 + root), 1 / (1 + root)]
    loss = F.multilevelot_loss([student], [teacher], F.OtForm(top_k=2))
    assert loss.sums["absolute"].item() == pytest.approx(
        abs(p[0] - q[0]) + abs(p[1] - q[1]), rel=1e-3
    )
    s = [x / sum(p) for x in p]
    kl = sum(y * math.log(y / x) for x, y in zip(s, q, strict=True))
    assert loss.sums["logarithmic"].item() == pytest.approx(kl, rel=1e-2)
    moved = abs(s[0] - q[0]) + abs(s[1] - q[1])
    assert loss.sums["transport"].item() == pytest.approx(moved, rel=1e-2)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.floats(-4, 4), st.floats(0.5, 3))
def test_a_shift_and_nearly_a_scale_of_the_logits_change_nothing(seed, shift, scale):
    student, teacher = sequences(seed)
    loss = F.multilevelot_loss(student, teacher, F.OtForm(top_k=5))
    again = F.multilevelot_loss(
        [scale * rows + shift for rows in student], [rows - shift for rows in teacher],
        F.OtForm(top_k=5),
    )  # fmt: skip
    assert again.total.item() == pytest.approx(loss.total.item(), rel=1e-2)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_the_names_of_tokens_play_no_role(seed):
    student, teacher = sequences(seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    loss = F.multilevelot_loss(student, teacher, F.OtForm(top_k=5))
    again = F.multilevelot_loss([rows[:, order] for rows in student], teacher, F.OtForm(top_k=5))
    assert again.total.item() == pytest.approx(loss.total.item(), rel=1e-9)


def test_equal_models_differ_by_the_spread_of_the_plan_alone():
    student, _ = sequences(3, sizes=((4, 4), (2, 2)), widths=(9, 9))
    loss = F.multilevelot_loss(student, student, F.OtForm(top_k=5))
    assert loss.sums["absolute"] == 0
    assert loss.sums["logarithmic"].abs() < 1e-12
    sharp = F.multilevelot_loss(student, student, F.OtForm(top_k=5, regularisation=0.005))
    assert 0 <= sharp.sums["transport"] < 0.1 * loss.sums["transport"]


def test_a_sequence_does_not_know_the_rest_of_the_batch():
    student, teacher = sequences(4)
    form = F.OtForm(top_k=4)
    whole = F.multilevelot_loss(student, teacher, form).total
    alone = [
        F.multilevelot_loss([s], [t], form).total for s, t in zip(student, teacher, strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(alone).sum())
    # the authors' code does
    form = F.OtForm(top_k=4, compatible=True)
    whole = F.multilevelot_loss(student, teacher, form).sums["absolute"] / 6
    alone = [
        (part := F.multilevelot_loss([s], [t], form)).sums["absolute"] / part.count
        for s, t in zip(student, teacher, strict=True)
    ]
    assert not torch.allclose(whole, torch.stack(alone).mean())


@pytest.mark.parametrize("compatible", [False, True])
def test_no_rows(compatible):
    student = torch.zeros(0, 5, requires_grad=True)
    form = F.OtForm(compatible=compatible)
    loss = F.multilevelot_loss([student, student], [torch.ones(2, 4), torch.zeros(0, 4)], form)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total == loss.count == 0
    assert gradient.shape == (0, 5)


def test_impossible_tokens_and_constant_rows_have_finite_gradients():
    student = torch.tensor([[-torch.inf, 1.0, 2.0, 0.0], [3.0, 3.0, 3.0, 3.0]]).requires_grad_()
    teacher = torch.tensor([[0.0, -torch.inf, 2.0], [1.0, 1.0, 1.0]])
    loss = F.multilevelot_loss([student], [teacher], F.OtForm())
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_blocks_and_the_whole_agree(monkeypatch):
    student, teacher = sequences(5, sizes=((5, 5),))
    leaf = student[0].requires_grad_()
    whole = F.multilevelot_loss([leaf], teacher, F.OtForm(top_k=4))
    (expected,) = torch.autograd.grad(whole.total, leaf)
    monkeypatch.setattr(module, "rows_in_block", lambda *_: 2)
    parts = F.multilevelot_loss([leaf], teacher, F.OtForm(top_k=4))
    (got,) = torch.autograd.grad(parts.total, leaf)
    torch.testing.assert_close(parts.total, whole.total)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"log_weight": -1.0}, "log_weight must be at least 0"),
        ({"transport_weight": math.inf}, "transport_weight must be at least 0"),
        ({"regularisation": 0.0}, "regularisation must be above 0"),
    ],
)
def test_what_cannot_be_asked(options, words):
    with pytest.raises(ConfigError, match=words):
        F.OtForm(**options)


def test_as_many_sequences_on_both_sides():
    with pytest.raises(ConfigError, match="as many sequences"):
        F.multilevelot_loss([torch.zeros(1, 2)], [], F.OtForm())
