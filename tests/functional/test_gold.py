"""`gold_loss` against the float64 oracle, by hand, by brute force, and its properties."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.gold import MERGES, TAILS, TRL_FLOOR, _Merged, jensen_shannon
from crosstill.functional.matching import match_columns
from crosstill.functional.scores import row_logprobs
from oracle import gold as oracle

SHARED = [(0, 2), (3, 1), (4, 4), (6, 0)]
SIZES = (8, 7)


def sequences(seed, n=5, sizes=SIZES, dtype=torch.float64):
    """Both sides: (logits [T, V] of the row before each token and one more, ids, chunk sizes)."""
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for size in sizes:
        lengths = torch.randint(1, 4, (n,), generator=generator).tolist()
        tokens = sum(lengths)
        logits = 2 * torch.randn(tokens + 1, size, generator=generator, dtype=torch.float64)
        ids = torch.randint(0, size, (tokens,), generator=generator)
        sides.append((logits.to(dtype), ids, lengths))
    # a chunk of one token on both sides is the same token
    for k, (one, two) in enumerate(zip(sides[0][2], sides[1][2], strict=True)):
        if one == two == 1:
            s, t = SHARED[k % len(SHARED)] if max(sizes) > 4 else (0, 1)
            sides[0][1][sum(sides[0][2][:k])] = s
            sides[1][1][sum(sides[1][2][:k])] = t
    return sides


def gathered(side, merge, temperature=1.0):
    """(rows that a merge asks for, ChunkTokens) from a whole sequence."""
    logits, ids, lengths = side
    starts = [sum(lengths[:k]) for k in range(len(lengths))]
    rows, rest = [], []
    for start, length in zip(starts, lengths, strict=True):
        last = start + length - 1
        late = int(merge == "observed")
        kept = last if merge == "bayesian" else start
        rows.append(logits[kept + late])
        scores = [
            row_logprobs(logits[t + late] / temperature, ids[t])
            for t in range(start, last + 1)
            if t != kept
        ]
        if merge != "causal":
            scores = [score.clamp(min=TRL_FLOOR) for score in scores]
        rest.append(sum(scores, logits.new_zeros(())))
    alone = torch.tensor([length == 1 for length in lengths])
    return torch.stack(rows), F.ChunkTokens(ids[starts], alone, torch.stack(rest))


def loss_of(sides, shared=SHARED, temperatures=(1.0, 1.0), **options):
    form = F.GoldForm(
        student_temperature=temperatures[0], teacher_temperature=temperatures[1], **options
    )
    rows, tokens = zip(
        *(gathered(side, form.merge, t) for side, t in zip(sides, temperatures, strict=True)),
        strict=True,
    )
    columns = None
    if shared is not None:
        pairs = torch.tensor(shared, dtype=torch.long).reshape(-1, 2)
        columns = match_columns(pairs, rows[0].shape[1], rows[1].shape[1])
    return F.gold_loss(*rows, *tokens, columns, form)


def as_chunks(side, temperature=1.0):
    logits, ids, lengths = side
    found, start = [], 0
    for length in lengths:
        rows = [oracle.probabilities(row.tolist(), temperature)
                for row in logits[start : start + length + 1].double()]  # fmt: skip
        found.append((rows, ids[start : start + length].tolist()))
        start += length
    return found


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("merge", MERGES)
def test_equals_the_oracle(merge, tail, beta, dtype, tolerance):
    for seed in range(3):
        sides = sequences(seed, dtype=dtype)
        temperatures = (1.0, 1.0) if seed else (1.5, 0.8)
        loss = loss_of(sides, temperatures=temperatures, merge=merge, tail=tail, beta=beta)
        chunks = [as_chunks(side, t) for side, t in zip(sides, temperatures, strict=True)]
        expected = oracle.gold(*chunks, SHARED, merge=merge, beta=beta, tail=tail)
        assert loss.total.item() == pytest.approx(expected[0], rel=tolerance)
        for name, value in zip(loss.sums, expected[1:], strict=True):
            assert loss.sums[name].item() == pytest.approx(value, rel=tolerance, abs=tolerance)
        assert loss.count.item() == 5
        assert loss.total.dtype == dtype


@pytest.mark.parametrize("merge", MERGES)
def test_without_shared_tokens_all_are_compared_by_rank(merge):
    sides = sequences(4)
    loss = loss_of(sides, shared=None, merge=merge)
    assert loss.total.item() == pytest.approx(
        oracle.plain(*map(as_chunks, sides), merge=merge), rel=1e-9
    )
    assert not loss.sums


def test_fixed_weights_replace_the_share():
    sides = sequences(5)
    loss = loss_of(sides, weights="fixed", matched_weight=0.25, unmatched_weight=3.0)
    expected = 0.25 * loss.sums["matched"] + 3.0 * loss.sums["unmatched"]
    assert torch.allclose(loss.total, expected)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradcheck(merge, tail, beta):
    (student, ids, lengths), teacher = sequences(6, n=3)
    assert torch.autograd.gradcheck(
        lambda z: loss_of([(z, ids, lengths), teacher], merge=merge, tail=tail, beta=beta).total,
        student.requires_grad_(),
        fast_mode=True,
    )


@pytest.mark.parametrize("shared", [None, [(0, 1), (2, 0)]])
def test_gradcheck_of_every_entry(shared):
    (student, ids, lengths), teacher = sequences(7, n=2, sizes=(4, 3))
    assert torch.autograd.gradcheck(
        lambda z: loss_of([(z, ids, lengths), teacher], shared=shared).total,
        student.requires_grad_(),
    )


def test_a_chunk_has_the_product_of_its_conditionals():
    # Brute force: the chunk's event is the sum over all continuations that begin with its tokens.
    logits, ids, lengths = sequences(8, n=1, sizes=(4, 4))[0]
    lengths, ids = [3], torch.tensor([1, 2, 0])
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows, tokens = gathered((logits, ids, lengths), "causal")
    p = logits.softmax(-1)
    joint = {
        path: p[0, path[0]] * p[1, path[1]] * p[2, path[2]]
        for path in itertools.product(range(4), repeat=3)
    }
    merged = _Merged.of(rows, tokens, "causal")
    assert merged.chunk.exp().item() == pytest.approx(joint[1, 2, 0].item())
    assert merged.everything().sum().item() == pytest.approx(1.0)
    for v in (0, 2, 3):
        expected = sum(x for path, x in joint.items() if path[0] == v)
        assert merged.token[0, v].exp().item() == pytest.approx(expected.item())


def test_more_tokens_in_a_chunk_leave_the_other_entries_alone():
    # The same row, a chunk of one, two and three tokens: what else could come stays what it was.
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ids = torch.tensor([1, 3, 0])
    found = []
    for length in (1, 2, 3):
        rows, tokens = gathered((logits, ids, [length]), "causal")
        found.append(_Merged.of(rows, tokens, "causal"))
    for merged in found:
        others = [0, 2, 3, 4]
        torch.testing.assert_close(merged.token[0, others], found[0].token[0, others])
        whole = merged.chunk.exp() + merged.token[0, 1].exp()
        torch.testing.assert_close(whole, found[0].chunk.exp())


def test_two_rows_of_three_tokens_by_hand():
    # Student: chunk 0 is token 0; chunk 1 is token 1, then token 2 with probability 0.5.
    student = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2]]).log()
    teacher = torch.tensor([[0.6, 0.1, 0.3], [0.3, 0.3, 0.4]]).log()
    ours = F.ChunkTokens(
        torch.tensor([0, 1]), torch.tensor([True, False]), torch.tensor([0.0, math.log(0.5)])
    )
    theirs = F.ChunkTokens(torch.tensor([0, 2]), torch.tensor([True, True]), torch.zeros(2))
    columns = match_columns(torch.tensor([[0, 0], [1, 1]]), 3, 3)
    form = F.GoldForm(beta=0.0)
    loss = F.gold_loss(student, teacher, ours, theirs, columns, form)
    # chunk 0: token 0 is the chunk: chunk .5/.6, token 1 .3/.1, others .2/.3
    first = 0.6 * math.log(0.6 / 0.5) + 0.1 * math.log(0.1 / 0.3) + 0.3 * math.log(0.3 / 0.2)
    # chunk 1: chunk .6 x .5 = .3/.4, token 0 .2/.3, token 1 .3/.3, others .2/0
    second = 0.4 * math.log(0.4 / 0.3) + 0.3 * math.log(0.3 / 0.2)
    assert loss.sums["matched"].item() == pytest.approx(first + second, rel=1e-5)
    # alone: token 2, .2 against .3, and .2 against 0, since the teacher's token 2 is the chunk
    assert loss.sums["unmatched"].item() == pytest.approx(0.1 + 0.2, rel=1e-5)
    total = 2 / 3 * (first + second) + 1 / 3 * 0.3
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.sampled_from(TAILS[:2]))
@settings(max_examples=20)
def test_never_negative_and_zero_for_equal_models(seed, beta, tail):
    sides = sequences(seed, sizes=(8, 8))
    shared = [(v, v) for v in (0, 2, 5)]
    loss = loss_of(sides, shared=shared, beta=beta, tail=tail)
    assert loss.sums["matched"] >= -1e-12
    assert loss.total >= -1e-12
    logits, ids, lengths = sides[0]
    leaf = logits.clone().requires_grad_()
    equal = loss_of([(leaf, ids, lengths), sides[0]], shared=shared, beta=beta, tail=tail)
    (gradient,) = torch.autograd.grad(equal.total, leaf)
    assert equal.total.abs() < 1e-12
    assert gradient.abs().max() < 1e-9


@given(st.integers(0, 10**6), st.floats(-5, 5))
@settings(max_examples=10)
def test_a_constant_on_all_logits_changes_nothing(seed, shift):
    student, teacher = sequences(seed)
    loss = loss_of([student, teacher])
    again = loss_of([(student[0] + shift, *student[1:]), (teacher[0] - shift, *teacher[1:])])
    assert torch.allclose(loss.total, again.total)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_beta_is_continuous_at_its_ends(end):
    sides = sequences(9)
    at_end = loss_of(sides, beta=end).total
    near = loss_of(sides, beta=abs(end - 1e-6)).total
    assert near.item() == pytest.approx(at_end.item(), rel=1e-4)
    # TRL's form is not: it goes to zero and jumps
    jump = loss_of(sides, beta=end, tail="trl").sums["matched"]
    beside = loss_of(sides, beta=abs(end - 1e-6), tail="trl").sums["matched"]
    assert beside.abs() < 1e-3 * jump.abs()


def test_trl_tail_is_negative_where_a_divergence_cannot_be():
    student = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.1, 0.1, 0.8]], dtype=torch.float64).log()
    one = F.ChunkTokens(torch.tensor([2]), torch.tensor([True]), torch.zeros(1))
    columns = match_columns(torch.tensor([[0, 0]]), 3, 3)
    matched = {
        tail: F.gold_loss(
            student, teacher, one, one, columns, F.GoldForm(beta=0.0, tail=tail, merge="bayesian")
        ).sums["matched"].item()
        for tail in TAILS
    }  # fmt: skip
    assert matched["trl"] < 0 < matched["pooled"]
    assert matched["renormalised"] == pytest.approx(0)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("tail", TAILS)
def test_no_shared_token_at_all(merge, tail):
    (student, ids, lengths), teacher = sequences(10)
    leaf = student.clone().requires_grad_()
    loss = loss_of([(leaf, ids, lengths), teacher], shared=[], merge=merge, tail=tail)
    (gradient,) = torch.autograd.grad(loss.total, leaf)
    assert loss.total.isfinite()
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("tail", TAILS)
def test_every_token_shared(tail):
    sides = sequences(11, sizes=(6, 6))
    loss = loss_of(sides, shared=[(v, v) for v in range(6)], tail=tail)
    assert loss.total.isfinite()
    assert loss.sums["unmatched"] == 0


def test_shared_pairs_in_any_order():
    sides = sequences(12)
    assert torch.allclose(loss_of(sides).total, loss_of(sides, shared=SHARED[::-1]).total)


@pytest.mark.parametrize("matched", [True, False])
def test_no_chunks(matched):
    none = F.ChunkTokens(torch.zeros(0).long(), torch.zeros(0).bool(), torch.zeros(0))
    columns = match_columns(torch.tensor([[0, 1]]), 3, 4) if matched else None
    student = torch.zeros(0, 3, requires_grad=True)
    loss = F.gold_loss(student, torch.zeros(0, 4), none, none, columns, F.GoldForm())
    (gradient,) = torch.autograd.grad(loss.total, student)
    assert loss.total == loss.count == 0
    assert gradient.shape == (0, 3)


def test_impossible_tokens_have_finite_gradients():
    (student, ids, lengths), teacher = sequences(13)
    student[2, ids[2]] = -torch.inf
    student[:, 0] = -torch.inf
    leaf = student.requires_grad_()
    for options in ({}, {"beta": 0.0}, {"tail": "trl"}, {"merge": "bayesian"}):
        loss = loss_of([(leaf, ids, lengths), teacher], **options)
        (gradient,) = torch.autograd.grad(loss.total, leaf)
        assert loss.total.isfinite()
        assert gradient.isfinite().all()


def test_jensen_shannon_equals_the_oracle():
    p = torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    p = p.log_softmax(-1)
    for beta in (0.0, 0.1, 0.5, 1.0):
        got = jensen_shannon(p[:1], p[1:], beta, scaled=True).item()
        expected = oracle.jsd(*(row.exp().tolist() for row in p), beta, scaled=True)
        assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"merge": "sum"}, "causal, observed, bayesian"),
        ({"tail": "drop"}, "pooled, renormalised, trl"),
        ({"weights": "half"}, "share, fixed"),
        ({"beta": 1.5}, "beta must be from 0 to 1"),
        ({"matched_weight": -1.0}, "at least 0"),
        ({"student_temperature": 0.0}, "student_temperature"),
    ],
)
def test_what_cannot_be_asked(options, words):
    with pytest.raises(ConfigError, match=words):
        F.GoldForm(**options)


def test_a_token_shared_twice_is_refused():
    with pytest.raises(ConfigError, match="each id once"):
        match_columns(torch.tensor([[0, 0], [0, 1]]), 3, 3)
