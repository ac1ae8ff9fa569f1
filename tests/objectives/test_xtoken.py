"""The `xtoken` objective: its projection, both modes, and its options."""

from itertools import pairwise

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from objectives.batches import alone, toy_pair, whole
from oracle import xtoken as oracle


@pytest.mark.parametrize(
    ("options", "of_projection"),
    [
        ({"top_k": 4, "tail": "drop", "temperature": 2.0}, {}),
        ({"decay": 0.5, "max_pieces": 2}, {"decay": 0.5, "max_pieces": 2}),
        ({"mode": "hybrid", "matched_weight": 0.5, "unmatched_weight": 2.0}, {}),
        ({"mode": "hybrid", "decay": 0.9, "match_threshold": 0.52}, {"decay": 0.9}),
    ],
)
def test_it_is_the_function_on_the_rows_before_each_chunk(options, of_projection):
    case, batch, signal = whole(2, dtype=torch.float64)
    mix = alone("xtoken", case, **options)
    loss = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    rows = F.chunk_rows(case.student_chunk, case.teacher_chunk)
    logits = [
        case.logits[rows.batch, rows.student_row].tolist(),
        signal.rows(rows.batch, rows.teacher_row).tolist(),
    ]
    vocabulary = toy_pair(case).vocabulary
    offsets, ids = vocabulary.student_spelled()
    spelled = [ids[a:b].tolist() for a, b in pairwise(offsets)]
    shared = [tuple(pair) for pair in vocabulary.shared().tolist()]
    table = oracle.projection(shared, spelled, **of_projection)
    rest = {k: v for k, v in options.items() if k not in ("mode", "match_threshold")}
    rest = {k: v for k, v in rest.items() if k not in of_projection}
    if "mode" in options:
        pairs = oracle.relaxed(table, options.get("match_threshold", 0.6))
        total = oracle.hybrid(*logits, pairs, **rest)[0]
    else:
        total = oracle.xtoken(*logits, table, **rest)[0]
    # the weights of the projection are float32
    assert loss.parts["xtoken"].total.item() == pytest.approx(total, rel=1e-6)
    assert loss.parts["xtoken"].count == len(rows.batch)


@pytest.mark.parametrize("mode", ["projection", "hybrid"])
def test_training_on_it_closes_the_gap(mode):
    case, batch, signal = whole(3)
    mix = alone("xtoken", case, mode=mode)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    values = []
    for _ in range(30):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        values.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_metrics_tell_how_much_of_the_teacher_is_seen():
    case, batch, signal = whole(4)
    mix = alone("xtoken", case)
    metrics = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal)).metrics()
    shares = [metrics[f"xtoken/{key}"] for key in ("exact", "reached", "compared")]
    exact, reached, compared = ((total / count).item() for total, count in shares)
    assert 0 < exact <= reached <= 1
    assert compared <= reached + 1e-6


def test_without_a_pair_it_says_so():
    case, batch, signal = whole(5)
    mix = alone("xtoken", case)
    mix.objectives["xtoken"][0]._pairs = None
    with pytest.raises(ConfigError, match="prepare"):
        mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "both"},
        {"top_k": 0},
        {"tail": "cut"},
        {"decay": 2.0},
        {"max_pieces": 0},
        {"match_threshold": 1.5},
        {"matched_weight": -1.0},
        {"temperature": 0.0},
    ],
)
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        create("xtoken", **options)
