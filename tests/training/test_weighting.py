"""The weightings against their oracles, on numbers alone."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosstill.training.weighting import (
    gradmag_weights,
    gradnorm_gradient,
    pcgrad_weights,
    uncertainty_gradient,
)
from oracle import weighting as oracle

seeds = st.integers(0, 10_000)


def vectors(seed, size=None, length=6):
    rng = np.random.default_rng(seed)
    size = size or int(rng.integers(2, 6))
    return rng.normal(size=(size, length)) * 10.0 ** rng.uniform(-3, 3, (size, 1))


def tensor(values):
    return torch.tensor(np.asarray(values), dtype=torch.float64)


@given(seeds)
@settings(deadline=None)
def test_gradmag_is_the_papers(seed):
    gradients = vectors(seed)
    weights = gradmag_weights(tensor(np.linalg.norm(gradients, axis=1)))
    assert weights.tolist() == pytest.approx(oracle.gradmag(gradients), rel=1e-9)
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)


def test_under_gradmag_every_gradient_is_as_long_as_the_others():
    norms = tensor([7.0, 0.02, 3.0])
    lengths = gradmag_weights(norms) * norms
    assert lengths.tolist() == pytest.approx([float(lengths[0])] * 3, rel=1e-5)


@pytest.mark.parametrize("nothing", [0.0, 1e-9])
def test_an_objective_without_a_gradient_takes_nothing_from_the_others(nothing):
    weights = gradmag_weights(tensor([4.0, nothing, 1.0]))
    assert weights.tolist() == pytest.approx([1 / 6, 1 / 6, 4 / 6], rel=1e-6)
    assert gradmag_weights(torch.zeros(3)).tolist() == pytest.approx([1 / 3] * 3)


@given(seeds, st.sampled_from([0.0, 0.12, 1.5]))
@settings(deadline=None)
def test_gradnorm_is_the_derivative_of_its_loss(seed, alpha):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    weights, norms, losses, first = rng.uniform(0.1, 3.0, (4, n))
    found = gradnorm_gradient(*map(tensor, (weights, norms, losses, first)), alpha=alpha)
    targets = oracle.gradnorm_targets(weights, norms, losses, first, alpha)
    for i in range(n):
        nudge = np.zeros(n)
        nudge[i] = 1e-7 * min(1.0, abs(weights[i] * norms[i] - targets[i]) / norms[i] * 1e6)
        high, low = (
            oracle.gradnorm_loss(w, norms, losses, first, alpha, targets)
            for w in (weights + nudge, weights - nudge)
        )
        if nudge[i] > 1e-9:  # beside the corner of the absolute value
            assert float(found[i]) == pytest.approx((high - low) / (2 * nudge[i]), rel=1e-4)


def test_gradnorm_favours_what_learns_slower():
    """Equal lengths, but the second has lost less of its first loss: its weight grows."""
    one = torch.ones(2)
    gradient = gradnorm_gradient(one, one, torch.tensor([0.5, 0.9]), one, alpha=1.5)
    assert gradient[0] > 0 > gradient[1]
    assert gradnorm_gradient(one, one, torch.tensor([0.5, 0.9]), one, alpha=0.0).abs().sum() == 0


def test_gradnorm_without_a_first_loss_stays_finite():
    found = gradnorm_gradient(
        torch.ones(2), torch.tensor([1.0, 0.0]), torch.zeros(2), torch.zeros(2), alpha=1.5
    )
    assert torch.isfinite(found).all()


@given(seeds)
@settings(deadline=None)
def test_pcgrad_is_the_algorithm_on_vectors(seed):
    gradients = vectors(seed, length=3)
    n = len(gradients)
    deal = random.Random(seed)
    orders = [deal.sample(o, n - 1) for o in ([j for j in range(n) if j != i] for i in range(n))]
    weights = pcgrad_weights(tensor(gradients @ gradients.T), orders)
    expected = oracle.pcgrad(gradients, orders)
    scale = np.abs(gradients).max()
    assert weights.numpy() @ gradients == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)


def test_two_gradients_in_conflict_no_longer_harm_each_other():
    gradients = np.array([[1.0, 0.2], [-3.0, 0.5]])
    sum_ = pcgrad_weights(tensor(gradients @ gradients.T), [[1], [0]]).numpy() @ gradients
    assert (gradients @ gradients.sum(0)).min() < 0 <= (gradients @ sum_).min()


def test_pcgrad_leaves_what_agrees_and_survives_nothing():
    assert pcgrad_weights(tensor([[1.0, 0.3], [0.3, 2.0]]), [[1], [0]]).tolist() == [1.0, 1.0]
    assert pcgrad_weights(torch.zeros(2, 2), [[1], [0]]).tolist() == [1.0, 1.0]


@given(seeds)
@settings(deadline=None)
def test_uncertainty_is_the_derivative_of_its_loss(seed):
    rng = np.random.default_rng(seed)
    losses, s = rng.uniform(0.0, 4.0, 3), rng.normal(size=3)
    found = uncertainty_gradient(tensor(s), tensor(losses))
    for i in range(3):
        nudge = np.eye(3)[i] * 1e-6
        slope = oracle.uncertainty_loss(losses, s + nudge)
        slope = (slope - oracle.uncertainty_loss(losses, s - nudge)) / 2e-6
        assert float(found[i]) == pytest.approx(slope, rel=1e-6, abs=1e-7)
