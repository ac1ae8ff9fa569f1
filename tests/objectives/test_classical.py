"""The objectives for one vocabulary: refusals, options, equality, and where the gradient is."""

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from crosstill.objectives.classical import CLASSICAL
from objectives.batches import alone, toy_pair, whole

NAMES = [objective.name for objective in CLASSICAL]
TARGETED = {"dac_kl", "swapped_kl"}


@pytest.mark.parametrize("name", NAMES)
def test_two_vocabularies_are_refused_with_what_to_use_instead(name):
    case, _, _ = whole(1, same=True)
    objective = create(name)
    objective.prepare(toy_pair(case, same=True))
    with pytest.raises(ConfigError, match=f"'{name}'.*alm.*xtoken"):
        objective.prepare(toy_pair(case))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("forward_kl", {"temperature": 2.0}),
        ("reverse_kl", {"temperature": 2.0}),
        ("jsd", {"beta": 0.2, "scale": "gkd"}),
        ("skewed_kl", {"alpha": 0.4}),
        ("skewed_reverse_kl", {"alpha": 0.4}),
        ("adaptive_kl", {"mu": 0.8, "head_size": 3}),
        ("total_variation", {"temperature": 2.0}),
        ("dac_kl", {"lower": 0.1, "upper": 0.6, "top_k": 4, "tail": "drop"}),
        ("swapped_kl", {"student_weight": 0.3}),
    ],
)
def test_it_is_the_function_on_the_rows_before_each_token(name, options):
    case, batch, signal = whole(2, dtype=torch.float64, same=True)
    mix = alone(name, case, **options)
    loss = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    # one vocabulary: every chunk's first token, in plain words
    found = []
    for b, chunks in enumerate(batch["student_chunk"].tolist()):
        starts = {c: t for t, c in reversed(list(enumerate(chunks))) if c >= 0}
        found += [(b, t - 1) for t in sorted(starts.values()) if t > 0]
    b, t = torch.tensor(found).unbind(-1)
    args = [case.logits[b, t], signal.rows(b, t)]
    if name in TARGETED:
        args.append(batch["student_input_ids"][b, t + 1])
    expected = getattr(F, name)(*args, **options)
    assert loss.parts[name].count == expected.count > 0
    assert loss.parts[name].total.item() == pytest.approx(expected.total.item(), rel=1e-9)
    for key, value in expected.sums.items():
        assert loss.parts[name].sums[key].item() == pytest.approx(value.item())


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_the_teacher_change_nothing(name, monkeypatch):
    case, batch, signal = whole(3, dtype=torch.float64, same=True)
    mix = alone(name, case)
    results = []
    for rows in (256, 3):
        monkeypatch.setattr("crosstill.objectives.classical.TEACHER_ROWS", rows)
        logits = case.logits.clone().requires_grad_()
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        results.append((loss.total, *torch.autograd.grad(loss.total, logits)))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-12)
    assert torch.allclose(results[0][1], results[1][1], atol=1e-14)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "swapped_kl"])
def test_training_on_it_brings_the_student_to_its_teacher(name):
    case, batch, signal = whole(4, same=True)
    mix = alone(name, case)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    values = []
    for _ in range(30):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        values.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("forward_kl", {"temperature": 0.0}),
        ("jsd", {"beta": 2.0}),
        ("skewed_kl", {"alpha": 1.0}),
        ("adaptive_kl", {"mu": 0.0}),
        ("dac_kl", {"upper": 0.0}),
        ("swapped_kl", {"student_weight": -1.0}),
        ("swapped_kl", {"temperature": -1.0}),
    ],
)
def test_values_out_of_range_are_refused_when_it_is_made(name, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        create(name, **options)
