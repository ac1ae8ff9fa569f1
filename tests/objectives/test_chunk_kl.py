"""The `chunk_kl` objective: its options, and its fixed point."""

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from objectives.batches import alone, whole


def test_options_reach_the_loss():
    case, batch, signal = whole(2, dtype=torch.float64)
    mix = alone("chunk_kl", case, credit="prior", clip=0.5)
    loss = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    expected = F.chunk_kl_loss(
        F.token_logprobs(case.logits, case.student_ids),
        signal.logprob,
        case.student_chunk,
        case.teacher_chunk,
        credit="prior",
        clip=0.5,
    )
    assert torch.allclose(loss.parts["chunk_kl"].total, expected.total)
    assert loss.parts["chunk_kl"].count == expected.count
    assert set(loss.metrics()) == {"chunk_kl", "chunk_kl/gap", "chunk_kl/log_ratio"}


@pytest.mark.parametrize("credit", ["equal", "prior"])
def test_training_on_it_closes_the_gap(credit):
    case, batch, signal = whole(3)
    mix = alone("chunk_kl", case, credit=credit)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    gaps = []
    for _ in range(30):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        total, count = loss.metrics()["chunk_kl/gap"]
        gaps.append((total / count).item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert gaps[-1] < 0.2 * gaps[0]


@pytest.mark.parametrize("options", [{"credit": "all"}, {"clip": -1.0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        create("chunk_kl", **options)
