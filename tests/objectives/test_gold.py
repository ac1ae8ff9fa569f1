"""The `gold` objective: TRL's numbers in its forms, and where the gradient goes."""

import json
from pathlib import Path

import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.functional.gold import MERGES
from crosstill.objectives import Mix, create
from objectives.batches import alone, whole
from oracle import gold as oracle

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trl_gold.json").read_text())


def as_batch(golden):
    """(batch, student's logits, teacher's logits) of what TRL was given."""
    batch, logits = {}, []
    for side, given in golden["sides"].items():
        ids = torch.tensor([given["ids"]])
        chunk = [-1] * golden["prompt"]
        for k, length in enumerate(golden["lengths"][side]):
            chunk += [k] * length
        batch[f"{side}_input_ids"] = ids
        batch[f"{side}_chunk"] = torch.tensor([chunk])
        batch[f"{side}_labels"] = ids.masked_fill(batch[f"{side}_chunk"] < 0, -100)
        logits.append(torch.tensor([given["logits"]], dtype=torch.float64))
    return batch, *logits


class LogitsSignal:
    """A teacher that gives rows of these logits."""

    def __init__(self, logits):
        self.logits = logits

    def rows(self, row, position):
        return self.logits[row, position]


class Facts:
    """As much of a pair as `gold` reads."""

    def __init__(self, shared, student, teacher):
        self.vocabulary = self
        self.pairs = torch.tensor(shared).numpy()
        self.student, self.teacher = (self.Size(size) for size in (student, teacher))

    class Size:
        def __init__(self, size):
            self.vocab_size = size

    def shared(self):
        return self.pairs


def of_trl(config):
    """Our options for TRL's."""
    options = {
        "merge": config["uld_token_merge_strategy"],
        "hybrid": config["uld_use_hybrid_loss"],
        "beta": config["beta"],
        "tail": "trl",
        "student_temperature": config["uld_student_temperature"],
        "teacher_temperature": config["uld_teacher_temperature"],
    }
    if "uld_hybrid_matched_weight" in config:
        options |= {
            "weights": "fixed",
            "matched_weight": config["uld_hybrid_matched_weight"],
            "unmatched_weight": config["uld_hybrid_unmatched_weight"],
        }
    return options


@pytest.mark.parametrize(
    "record", GOLDEN["records"], ids=lambda r: "-".join(map(str, r["config"].values()))
)
def test_equals_what_trl_computed(record):
    batch, student, teacher = as_batch(GOLDEN)
    objective = create("gold", **of_trl(record["config"]))
    objective.prepare(Facts(GOLDEN["shared"], student.shape[2], teacher.shape[2]))
    mix = Mix({"gold": (objective, 1.0)})
    logits, signal = student.requires_grad_(), LogitsSignal(teacher)
    loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
    (gradient,) = torch.autograd.grad(loss.total, logits)
    assert loss.total.item() == pytest.approx(record["value"], rel=1e-6)
    expected = torch.tensor([record["gradient"]], dtype=torch.float64)
    # TRL's logarithm is of a probability that was rounded; where it has an entry at its floor of
    # 1e-8 there is no gradient on either side
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def given(seed, **options):
    case, batch, signal = whole(seed, dtype=torch.float64)
    mix = alone("gold", case, **options)
    logits = case.logits.clone().requires_grad_()
    loss = mix.from_logits(logits, batch, signal, {"gold": torch.tensor(1.0)})
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return case, batch, signal, loss, gradient


@pytest.mark.parametrize("merge", MERGES)
def test_equals_the_oracle_on_a_batch(merge):
    case, batch, signal, loss, _ = given(2, merge=merge, student_temperature=1.3)
    chunks = [[], []]
    rows = F.chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    teacher = signal.hidden @ signal.weight.t()
    for b, k in zip(rows.batch.tolist(), rows.chunk.tolist(), strict=True):
        for side, (name, logits, t) in enumerate(
            [("student", case.logits, 1.3), ("teacher", teacher, 1.0)]
        ):
            tokens = (batch[f"{name}_chunk"][b] == k).nonzero().squeeze(1)
            read = torch.cat([tokens - 1, tokens[-1:]]) if merge != "observed" else tokens
            found = [oracle.probabilities(row, t) for row in logits[b, read].tolist()]
            if merge == "observed":  # the oracle takes the rows after the first
                found = [[], *found]
            chunks[side].append((found, batch[f"{name}_input_ids"][b, tokens].tolist()))
    shared = alone("gold", case).objectives["gold"][0]._columns
    pairs = list(zip(shared.student.tolist(), shared.teacher.tolist(), strict=True))
    expected = oracle.gold(*chunks, pairs, merge=merge, beta=0.5, tail="pooled")
    assert loss.total.item() == pytest.approx(expected[0], rel=1e-9)


def test_the_gradient_is_at_the_row_before_each_token():
    _, batch, _, _, gradient = given(3)
    rows = F.chunk_rows(batch["student_chunk"], batch["teacher_chunk"])
    counted = set(zip(rows.batch.tolist(), rows.chunk.tolist(), strict=True))
    expected = {
        (b, t - 1)
        for b, row in enumerate(batch["student_chunk"].tolist())
        for t, k in enumerate(row)
        if (b, k) in counted
    }
    touched = {tuple(x) for x in gradient.abs().sum(-1).nonzero().tolist()}
    assert touched == expected


def test_observed_is_one_row_late():
    *_, causal = given(3)
    *_, observed = given(3, merge="observed")
    rows = [g.abs().sum(-1).nonzero() for g in (causal, observed)]
    torch.testing.assert_close(rows[0] + torch.tensor([0, 1]), rows[1])


def test_options_reach_the_loss():
    _, _, _, plain, _ = given(4)
    options = {
        "merge": "bayesian", "hybrid": False, "beta": 0.1, "tail": "renormalised",
        "weights": "fixed", "student_temperature": 2.0, "teacher_temperature": 2.0,
    }  # fmt: skip
    for key, value in options.items():
        assert not torch.allclose(given(4, **{key: value})[3].total, plain.total)
    fixed = given(4, weights="fixed", matched_weight=0.5, unmatched_weight=0.25)[3]
    sums = fixed.parts["gold"].sums
    assert torch.allclose(fixed.total, 0.5 * sums["matched"] + 0.25 * sums["unmatched"])


def test_training_on_it_brings_it_down():
    case, batch, signal = whole(6)
    mix = alone("gold", case)
    logits = case.logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    values = []
    for _ in range(60):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal))
        values.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert values[-1] < 0.2 * values[0]


def test_not_prepared():
    case, batch, signal = whole(1)
    mix = Mix({"gold": (create("gold"), 1.0)})
    with pytest.raises(ConfigError, match="not prepared"):
        mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    mix = Mix({"gold": (create("gold", hybrid=False), 1.0)})
    assert mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal)).total > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [({"merge": "sum"}, "causal, observed, bayesian"), ({"beta": 2.0}, "from 0 to 1")],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        create("gold", **options)
