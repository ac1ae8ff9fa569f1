import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.ensemble.mixing import (
    MIXES,
    checked_mix,
    checked_weights,
    mixed_logprobs,
    mixed_token_logprobs,
)
from crosstill.errors import ConfigError
from oracle import ensemble as oracle

ORACLES = {
    "probabilities": oracle.mean_of_probabilities,
    "log_probabilities": oracle.mean_of_log_probabilities,
}
logits = st.floats(-30, 30, width=32)


@st.composite
def members(draw):
    """Rows of logits, one a member, and weights of sum one."""
    number, size = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    rows = draw(
        st.lists(st.lists(logits, min_size=size, max_size=size), min_size=number, max_size=number)
    )
    weights = draw(st.lists(st.floats(0.01, 1), min_size=number, max_size=number))
    return rows, [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("mix", MIXES)
@given(case=members())
@settings(deadline=None, max_examples=60)
def test_equals_the_oracle(mix, case):
    rows, weights = case
    found = mixed_logprobs([torch.tensor(row, dtype=torch.float64) for row in rows], weights, mix)
    np.testing.assert_allclose(found.exp().numpy(), ORACLES[mix](rows, weights), atol=1e-12)


@pytest.mark.parametrize("mix", MIXES)
@given(case=members())
@settings(deadline=None, max_examples=40)
def test_properties(mix, case):
    rows, weights = [torch.tensor(row) for row in case[0]], case[1]
    found = mixed_logprobs(rows, weights, mix)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
    backwards = mixed_logprobs(rows[::-1], weights[::-1], mix)
    torch.testing.assert_close(found, backwards, atol=2e-5, rtol=1e-5)
    same = mixed_logprobs([rows[0]] * len(rows), weights, mix)
    torch.testing.assert_close(same, rows[0].log_softmax(-1), atol=2e-5, rtol=1e-5)
    one_hot = [float(k == len(rows) - 1) for k in range(len(rows))]
    assert torch.equal(mixed_logprobs(rows, one_hot, mix), rows[-1].log_softmax(-1))


@pytest.mark.parametrize("mix", MIXES)
def test_the_log_probability_of_one_token_is_that_of_the_mixture(mix):
    torch.manual_seed(0)
    rows = [torch.randn(5, 7) * 4 for _ in range(3)]
    weights, target = [0.5, 0.2, 0.3], torch.tensor([0, 6, 3, 3, 1])
    whole = mixed_logprobs(rows, weights, mix).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(mixed_token_logprobs(rows, weights, mix, target), whole)


@pytest.mark.parametrize("mix", MIXES)
def test_a_token_below_the_smallest_float_keeps_its_log_probability(mix):
    rows = [torch.tensor([0.0, -200.0]), torch.tensor([0.0, -200.0])]
    assert mixed_logprobs(rows, [0.5, 0.5], mix)[1].item() == pytest.approx(-200)


@pytest.mark.parametrize("mix", MIXES)
def test_a_column_that_nobody_may_write_stays_impossible(mix):
    rows = [torch.tensor([0.0, -torch.inf, 1.0]), torch.tensor([2.0, -torch.inf, 1.0])]
    found = mixed_logprobs(rows, [0.5, 0.5], mix)
    assert found[1] == -torch.inf
    assert found.exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize("mix", MIXES)
def test_nothing_given_is_changed_and_half_precision_is_summed_in_single(mix):
    rows = [torch.randn(2, 5, dtype=torch.bfloat16) for _ in range(3)]
    before = [row.clone() for row in rows]
    found = mixed_logprobs(rows, [0.4, 0.4, 0.2], mix)
    assert found.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(rows, before, strict=True))


def test_a_member_without_weight_counts_nothing_whatever_it_says():
    rows = [torch.tensor([0.0, 1.0]), torch.full((2,), torch.nan)]
    for mix in MIXES:
        assert mixed_logprobs(rows, [1.0, 0.0], mix).isfinite().all()


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [float("nan"), 1], [float("inf"), 1]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(ConfigError, match="weight"):
        checked_weights(weights, 2)


def test_names():
    assert checked_mix("probabilities") == "probabilities"
    with pytest.raises(ConfigError, match="log_probabilities"):
        checked_mix("mean")
