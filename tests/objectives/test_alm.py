"""The `alm` objective: its options, and zero where the student is its teacher."""

import math
from dataclasses import replace

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from objectives.batches import alone, whole


@pytest.mark.parametrize("temperature", [1.0, 100.0, math.inf])
@pytest.mark.parametrize("divergence", F.DIVERGENCES)
@pytest.mark.parametrize("debias", [True, False])
def test_zero_where_the_student_is_its_teacher(temperature, divergence, debias):
    case, batch, given = whole(1)
    batch["teacher_chunk"] = batch["student_chunk"]
    signal = replace(
        given,
        logprob=F.token_logprobs(case.logits, case.student_ids),
        boundary=F.boundary_logmass(case.logits, case.mask),
    )
    mix = alone("alm", case, temperature=temperature, divergence=divergence, debias=debias)
    logits = case.logits.clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
    loss.total.backward()
    assert loss.parts["alm"].count > 0
    assert loss.total.abs() < 1e-6
    assert logits.grad is not None
    # |a - b| has slope 1 on either side of zero, so there a rounding error decides.
    if divergence != "total_variation":
        assert logits.grad.abs().max() < 1e-5
    assert loss.parts["alm"].sums["gap"] < 1e-4


def test_options_reach_the_loss():
    case, batch, signal = whole(2, dtype=torch.float64)
    options = {
        "temperature": 5.0,
        "divergence": "reverse_kl",
        "merge_threshold": 0.4,
        "debias": False,
    }
    mix = alone("alm", case, **options)
    loss = mix.from_logits(case.logits, batch, signal, {"alm": torch.tensor(1.0)})
    expected = F.alm_loss(
        F.token_logprobs(case.logits, case.student_ids),
        signal.logprob,
        case.student_chunk,
        case.teacher_chunk,
        teacher_boundary=signal.boundary,
        temperature=5.0,
        divergence="reverse_kl",
        merge_threshold=0.4,
    )
    assert torch.allclose(loss.total, expected.total)
    assert mix.counts(batch, signal)["alm"] == expected.count


def test_training_on_it_closes_the_gap():
    case, batch, signal = whole(3)
    mix = alone("alm", case)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.2)
    gaps = []
    for _ in range(60):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        total, count = loss.metrics()["alm/gap"]
        gaps.append((total / count).item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert gaps[-1] < 0.2 * gaps[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "above 0"),
        ({"divergence": "jsd"}, "total_variation"),
        ({"merge_threshold": 1.0}, "below 1"),
        ({"merge_threshold": -0.1}, "at least 0"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("alm", **options)
