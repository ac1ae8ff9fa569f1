"""The projection and both X-Token losses against the float64 oracle, by hand, at their edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from oracle import xtoken as oracle

# Nine student tokens, eight teacher tokens: 7 of the teacher's has no way to it, 8 of the
# student's takes too many pieces, 6 has no spelling, 5 has a piece twice.
SHARED = [(0, 3), (1, 0), (4, 5)]
SPELLED = [[3], [0], [1, 2], [2, 0, 6], [1, 1], [4, 2, 4], [], [3, 4], [0, 0, 1, 1, 2]]
TEACHER = 8
OPTIONS = [
    {},
    {"tail": "drop"},
    {"top_k": 3},
    {"top_k": 3, "tail": "drop"},
    {"top_k": 3, "temperature": 2.0},
]


def made(dtype=torch.float32, **options):
    lengths = torch.tensor([0, *(len(one) for one in SPELLED)])
    ids = torch.tensor([t for one in SPELLED for t in one])
    projection = F.make_projection(torch.tensor(SHARED), lengths.cumsum(0), ids, TEACHER, **options)
    table = oracle.projection(SHARED, SPELLED, **options)
    if dtype == torch.float64:
        exact = [table[s][t] for s, t in entries(projection)]
        projection = F.Projection(
            **{**vars(projection), "weight": torch.tensor(exact, dtype=dtype)}
        )
    return projection, table


def entries(projection):
    return list(zip(projection.student.tolist(), projection.teacher.tolist(), strict=True))


def rows(seed=0, number=5, dtype=torch.float64, spread=2.0):
    g = torch.Generator().manual_seed(seed)
    return [
        (spread * torch.randn(number, v, generator=g, dtype=torch.float64)).to(dtype)
        for v in (len(SPELLED), TEACHER)
    ]


@pytest.mark.parametrize("options", [{}, {"decay": 0.5}, {"decay": 1.0, "max_pieces": 2}])
def test_the_projection_is_that_of_the_oracle(options):
    projection, table = made(**options)
    weights = dict(zip(entries(projection), projection.weight.tolist(), strict=True))
    assert len(weights) == len(projection.weight)
    expected = {(s, t): w for s, row in enumerate(table) for t, w in row.items()}
    assert weights == pytest.approx(expected)
    assert projection.unmapped.tolist() == [not row for row in table]
    reached = {t for row in table for t in row}
    assert projection.reached.tolist() == [t in reached for t in range(TEACHER)]
    assert projection.exact.nonzero().flatten().tolist() == [0, 3, 5]
    audit = projection.audit()
    assert audit["exact"] + audit["respelled"] + audit["unmapped"] == len(SPELLED)
    assert audit["reached"] == len(reached)


@pytest.mark.parametrize("threshold", [0.1, 0.55, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("decay", [0.1, 0.5, 1.0])
def test_relaxed_pairs_are_those_of_the_oracle(decay, threshold):
    projection, table = made(decay=decay)
    pairs = [tuple(pair) for pair in F.relaxed_pairs(projection, threshold).tolist()]
    assert pairs == oracle.relaxed(table, threshold)
    assert set(SHARED) <= set(pairs)  # an exact match yields to nothing
    assert len({t for _, t in pairs}) == len({s for s, _ in pairs}) == len(pairs)


def test_pairs_at_threshold_one_are_the_shared_tokens():
    assert F.relaxed_pairs(made()[0], 1.0).tolist() == [[0, 3], [1, 0], [4, 5]]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("options", OPTIONS)
def test_projection_loss_equals_the_oracle(options, dtype, tolerance):
    projection, table = made(dtype)
    for seed in range(3):
        student, teacher = rows(seed, dtype=dtype)
        loss = F.xtoken_loss(student, teacher, projection, **options)
        total, reached, compared = oracle.xtoken(
            student.tolist(), teacher.tolist(), table, **options
        )
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.sums["reached"].item() == pytest.approx(reached, rel=tolerance)
        assert loss.sums["compared"].item() == pytest.approx(compared, rel=tolerance)
        assert loss.count == len(student)
        assert loss.total.dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize(
    "options",
    [{}, {"matched_weight": 0.3, "unmatched_weight": 0.7}, {"temperature": 2.0}],
)
def test_hybrid_loss_equals_the_oracle(options, dtype, tolerance):
    pairs = F.relaxed_pairs(made(dtype)[0])
    for seed in range(3):
        student, teacher = rows(seed, dtype=dtype)
        loss = F.xtoken_hybrid_loss(student, teacher, pairs, **options)
        total, matched = oracle.hybrid(
            student.tolist(), teacher.tolist(), pairs.tolist(), **options
        )
        assert loss.total.item() == pytest.approx(total, rel=tolerance)
        assert loss.sums["matched"].item() == pytest.approx(matched, rel=tolerance)
        assert loss.count == len(student)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    projection, _ = made(torch.float64)
    student, teacher = rows(4, number=3)
    assert torch.autograd.gradcheck(
        lambda x: F.xtoken_loss(x, teacher, projection, **options).total,
        (student.requires_grad_(),),
    )


def test_gradcheck_of_the_hybrid_form():
    student, teacher = rows(4, number=3)
    pairs = F.relaxed_pairs(made()[0])
    assert torch.autograd.gradcheck(
        lambda x: F.xtoken_hybrid_loss(x, teacher, pairs, unmatched_weight=0.5).total,
        (student.requires_grad_(),),
    )


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.floats(0.1, 30.0), st.sampled_from(OPTIONS))
def test_never_negative_and_blind_to_a_constant(seed, spread, options):
    projection, _ = made(torch.float64)
    student, teacher = rows(seed, number=3, spread=spread)
    value = F.xtoken_loss(student, teacher, projection, **options).total.item()
    assert value >= -1e-12
    shifted = F.xtoken_loss(student + 7.0, teacher - 3.0, projection, **options).total.item()
    assert shifted == pytest.approx(value, rel=1e-7, abs=1e-9)
    pairs = F.relaxed_pairs(projection)
    assert F.xtoken_hybrid_loss(student, teacher, pairs).total >= -1e-12


def identity(size):
    """The projection of a vocabulary onto itself."""
    one = torch.arange(size)
    return F.make_projection(torch.stack([one, one], -1), torch.arange(size + 1), one, size)


@pytest.mark.parametrize("options", OPTIONS)
def test_zero_for_equal_models_with_one_vocabulary(options):
    student = rows(6, dtype=torch.float32)[0].requires_grad_()
    loss = F.xtoken_loss(student, student.detach(), identity(9), **options)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert abs(loss.total.item()) < 1e-6
    assert gradient.abs().max() < 1e-6


def test_with_one_vocabulary_both_forms_are_the_forward_kl():
    student, other = rows(7)[0], rows(8)[0]
    expected = F.forward_kl(student, other).total
    same = identity(9)
    assert torch.allclose(F.xtoken_loss(student, other, same).total, expected, rtol=1e-9)
    pairs = F.relaxed_pairs(same)
    assert torch.allclose(F.xtoken_hybrid_loss(student, other, pairs).total, expected, rtol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_minus_infinity_is_finite(options):
    projection, _ = made()
    student, teacher = rows(9, dtype=torch.float32)
    student[0, :6], teacher[0, 1:4] = -torch.inf, -torch.inf
    student[1], teacher[2] = -torch.inf, -torch.inf
    student.requires_grad_()
    for loss in (
        F.xtoken_loss(student, teacher, projection, **options),
        F.xtoken_hybrid_loss(student, teacher, F.relaxed_pairs(projection)),
    ):
        (gradient,) = torch.autograd.grad(loss.total, student)
        assert loss.total.isfinite()
        assert gradient.isfinite().all()


@given(st.floats(20.0, 300.0), st.integers(0, 1000))
@settings(max_examples=20)
def test_far_from_each_other_the_gradient_stays_finite(spread, seed):
    projection, _ = made()
    student, teacher = rows(seed, dtype=torch.float32, spread=spread)
    student.requires_grad_()
    loss = F.xtoken_loss(student, teacher, projection, top_k=4)
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()


def test_no_row_gives_zero_with_a_graph():
    projection, _ = made()
    student = torch.zeros(0, len(SPELLED), requires_grad=True)
    teacher = torch.zeros(0, TEACHER)
    for loss in (
        F.xtoken_loss(student, teacher, projection),
        F.xtoken_hybrid_loss(student, teacher, F.relaxed_pairs(projection)),
    ):
        (gradient,) = torch.autograd.grad(loss.mean(), student)
        assert loss.total.item() == loss.count.item() == 0
        assert gradient.shape == student.shape


def test_one_row_of_three_tokens_by_hand():
    # The student's "ab" is the teacher's "a" and "b": weights 10/11 and 1/11.
    shared = torch.tensor([[0, 0], [1, 1]])
    projection = F.make_projection(
        shared, torch.tensor([0, 1, 2, 4]), torch.tensor([0, 1, 0, 1]), 3
    )
    student = torch.tensor([[0.3, 0.15, 0.55]]).log()
    teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
    # Carried: a 0.3 + 0.5 = 0.8, b 0.15 + 0.05 = 0.2; nothing for c, which is left out.
    loss = F.xtoken_loss(student, teacher, projection)
    expected = 2 / 3 * math.log(2 / 3 / 0.8) + 1 / 3 * math.log(1 / 3 / 0.2)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.sums["reached"].item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "at least 1"),
        ({"tail": "cut"}, "pool, drop"),
        ({"temperature": math.inf}, "finite"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        F.xtoken_loss(*rows(0), made(torch.float64)[0], **options)


def test_other_mistakes_are_named():
    student, teacher = rows(0)
    with pytest.raises(ConfigError, match="those of the projection"):
        F.xtoken_loss(student[:, :5], teacher, made()[0])
    with pytest.raises(ConfigError, match="nothing is compared"):
        F.xtoken_hybrid_loss(
            student, teacher, torch.tensor(SHARED), matched_weight=0.0, unmatched_weight=0.0
        )
    with pytest.raises(ConfigError, match="matched_weight"):
        F.xtoken_hybrid_loss(student, teacher, torch.tensor(SHARED), matched_weight=-1.0)
    with pytest.raises(ConfigError, match="decay"):
        made(decay=0.0)
    with pytest.raises(ConfigError, match="max_pieces"):
        made(max_pieces=0)
    with pytest.raises(ConfigError, match="match_threshold"):
        F.relaxed_pairs(made()[0], 0.0)
