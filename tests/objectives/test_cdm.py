"""The objective `cdm` on toy vocabularies: against the oracle, and every option."""

import numpy as np
import pytest
import torch

from crosstill.errors import ConfigError
from crosstill.kernels import row_summary as kernel
from crosstill.objectives import StudentScores, create
from crosstill.objectives import cdm_rows as rows_module
from objectives.batches import (
    STUDENT_TOKENS,
    TEACHER_TOKENS,
    FakeSignal,
    ToyVocabularies,
    alone,
    student_of,
    toy_pair,
    whole,
)
from oracle import cdm as oracle

NAMES = [[token.decode() for token in side] for side in (STUDENT_TOKENS, TEACHER_TOKENS)]
SHARED = ToyVocabularies(STUDENT_TOKENS, TEACHER_TOKENS).shared()


def prepared(case, same=False, **options):
    objective = create("cdm", **options)
    objective.prepare(toy_pair(case, same=same))
    return objective


def run(objective, logits, batch, signal):
    logits = logits.detach().clone().requires_grad_()
    loss = objective.loss(StudentScores(logits, batch), batch, signal)
    (gradient,) = torch.autograd.grad(loss.total, logits)
    return loss, gradient


def sides_of(batch, signal, logits, row):
    """As the oracle wants them: rows that predict the supervised tokens, and these as strings."""
    found = []
    for side, names in (("student", NAMES[0]), ("teacher", NAMES[1])):
        position = [t for t, id in enumerate(batch[f"{side}_labels"][row].tolist())
                    if t > 0 and id != -100]  # fmt: skip
        before = torch.tensor([t - 1 for t in position], dtype=torch.int64)
        at = torch.full_like(before, row)
        values = logits[row, before] if side == "student" else signal.rows(at, before)
        ids = [int(batch[f"{side}_labels"][row, t]) for t in position]
        # The special token of both sides is one symbol.
        text = [names[id] or "§" for id in ids]
        found.append((values.double().tolist(), text, names))
    return found


@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_time_warping_equals_the_oracle(temperature, integer):
    for seed in range(2):
        case, batch, signal = whole(seed, dtype=torch.float64)
        objective = prepared(case, k=4, temperature=temperature, integer=integer)
        loss, _ = run(objective, case.logits, batch, signal)
        expected, count, sums = 0.0, 0, {}
        for row in range(len(case.student_ids)):
            student, teacher = sides_of(batch, signal, case.logits, row)
            if not student[0] or not teacher[0]:
                continue
            mean, report = oracle.sequence(
                student, teacher, k=4, theta=0.3, shared=SHARED, integer=integer,
                temperature=temperature,
            )  # fmt: skip
            expected += mean * len(student[0])
            count += len(student[0])
            for key, value in report.items():
                sums[key] = sums.get(key, 0.0) + value * len(student[0])
        assert loss.count.item() == count > 0
        assert loss.total.item() == pytest.approx(expected, rel=1e-9)
        for key, value in sums.items():
            assert loss.sums[key].item() == pytest.approx(value, rel=1e-6, abs=1e-9)
        assert loss.sums["alignment_gap"].item() == 0.0


@pytest.mark.parametrize("rows", ["mean", "first"])
def test_chunks_equal_the_oracle(rows):
    case, batch, signal = whole(2, dtype=torch.float64)
    loss, _ = run(prepared(case, k=4, alignment="bytes", rows=rows), case.logits, batch, signal)
    expected, count = 0.0, 0
    for row in range(len(case.student_ids)):
        chunks = [side[row].tolist() for side in (batch["student_chunk"], batch["teacher_chunk"])]
        for chunk in range(20):
            positions = [[t for t, k in enumerate(side) if k == chunk] for side in chunks]
            if not all(positions) or min(map(min, positions)) == 0:
                continue
            if rows == "first":
                positions = [side[:1] for side in positions]
            shares = [{t - 1: 1 / len(side) for t in side} for side in positions]
            one = oracle.mean_row(case.logits[row].tolist(), shares[0])
            everything = torch.arange(signal.hidden.shape[1])
            theirs = signal.rows(torch.full_like(everything, row), everything)
            two = oracle.mean_row(theirs.tolist(), shares[1])
            tops = oracle.top(one, 4), oracle.top(two, 4)
            pairs, _ = oracle.mapping(*tops, *NAMES, SHARED, 0.3)
            expected += oracle.divergence(one, two, pairs)
            count += 1
    assert loss.count.item() == count > 0
    assert loss.total.item() == pytest.approx(expected, rel=1e-9)
    assert loss.sums["alignment_rate"].item() == count


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
def test_equal_models_have_no_loss(alignment):
    case, batch, signal = whole(1, same=True, dtype=torch.float64)
    signal = FakeSignal(signal.logprob, signal.boundary, case.hidden, case.weight)
    objective = prepared(case, same=True, alignment=alignment)
    loss, gradient = run(objective, case.logits, batch, signal)
    assert loss.count.item() > 0
    assert abs(loss.total.item()) < 1e-12
    assert gradient.abs().max() < 1e-12
    for name in ("alignment_rate", "mapping_coverage"):
        assert loss.sums[name].item() == pytest.approx(loss.count.item())
    assert abs(loss.sums["unmapped_teacher"].item()) < 1e-6


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
def test_a_constant_added_to_all_logits_of_one_side_changes_nothing(alignment):
    case, batch, signal = whole(3, dtype=torch.float64)
    objective = prepared(case, alignment=alignment, k=5, temperature=1.5)
    plain, _ = run(objective, case.logits, batch, signal)

    class Moved(FakeSignal):
        def rows(self, row, position):
            return super().rows(row, position) - 2.0

    moved = Moved(signal.logprob, signal.boundary, signal.hidden, signal.weight)
    for logits, teacher in ((case.logits + 5.0, signal), (case.logits, moved)):
        loss, _ = run(objective, logits, batch, teacher)
        assert loss.total.item() == pytest.approx(plain.total.item(), rel=1e-9)


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
def test_the_rows_that_predict_the_response_are_read_and_no_others(alignment):
    case, batch, signal = whole(4, rows=1, dtype=torch.float64)
    taught = batch["student_labels"][0] != -100
    if alignment == "bytes":
        taught = batch["student_chunk"][0] >= 0
    _, gradient = run(prepared(case, alignment=alignment), case.logits, batch, signal)
    read = gradient[0].abs().sum(-1) > 0
    assert read[:-1].any()
    assert not (read[:-1] & ~taught[1:]).any()
    assert not read[-1]  # what comes after the last token is nobody's target
    if alignment == "dtw":
        assert (read[:-1] == taught[1:]).all()  # the first token of the response too


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
@pytest.mark.parametrize(
    ("dtype", "rel", "atol"), [(torch.float64, 1e-12, 1e-14), (torch.float32, 1e-5, 1e-6)], ids=str
)
def test_rows_that_cannot_be_held_at_once_give_the_same(alignment, dtype, rel, atol, monkeypatch):
    case, batch, signal = whole(5, dtype=dtype)
    objective = prepared(case, alignment=alignment)
    expected, gradient = run(objective, case.logits, batch, signal)
    monkeypatch.setattr(rows_module, "_HELD", 3 * signal.vocab_size)
    monkeypatch.setattr(rows_module, "_CACHED", 2 * signal.vocab_size)
    monkeypatch.setattr(rows_module, "_COMPILED", 2 * signal.vocab_size)
    found, other = run(objective, case.logits, batch, signal)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=rel)
    assert torch.allclose(gradient, other, atol=atol)
    for name, value in expected.sums.items():
        assert found.sums[name].item() == pytest.approx(value.item(), rel=1e-6, abs=10 * atol)


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_the_compiled_loop_the_same(alignment, dtype, monkeypatch):
    case, batch, signal = whole(7, dtype=dtype)
    objective = prepared(case, alignment=alignment, k=4)
    expected, gradient = run(objective, case.logits, batch, signal)
    monkeypatch.setattr(kernel, "available", lambda: False)
    found, other = run(objective, case.logits, batch, signal)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    assert torch.equal(gradient, other)
    for name, value in expected.sums.items():
        assert found.sums[name].item() == pytest.approx(value.item(), rel=1e-6, abs=1e-5)


def test_a_band_reports_its_gap():
    case, batch, signal = whole(6, dtype=torch.float64)
    exact, _ = run(prepared(case), case.logits, batch, signal)
    wide, _ = run(prepared(case, band=50), case.logits, batch, signal)
    narrow, _ = run(prepared(case, band=1), case.logits, batch, signal)
    assert wide.total.item() == exact.total.item()
    assert wide.sums["alignment_gap"].item() == 0.0
    assert 0.0 < narrow.sums["alignment_gap"].item() <= narrow.count.item()


def test_embeddings_pair_what_spelling_cannot():
    case, batch, signal = whole(7, dtype=torch.float64)
    pair = toy_pair(case)
    by_spelling = create("cdm", alignment="bytes", theta=0.01)
    by_embedding = create("cdm", alignment="bytes", theta=0.6, mapping_distance="embedding")
    for objective in (by_spelling, by_embedding):
        objective.prepare(pair)
    plain, _ = run(by_spelling, case.logits, batch, signal)
    found, gradient = run(by_embedding, case.logits, batch, signal)
    assert found.sums["mapping_coverage"] > plain.sums["mapping_coverage"]
    assert gradient.isfinite().all()
    one, two = oracle.shared_space(
        pair.student.input_embedding.numpy(), pair.teacher.input_embedding.numpy(), SHARED
    )
    assert (1 - one @ two.T).min() / 2 < 0.6


def test_dropping_spaces_pairs_tokens_that_differ_in_nothing_else():
    case, batch, signal = whole(8, dtype=torch.float64)
    options = {"alignment": "bytes", "theta": 0.01}
    kept, _ = run(prepared(case, **options), case.logits, batch, signal)
    dropped, _ = run(prepared(case, drop_spaces=True, **options), case.logits, batch, signal)
    assert dropped.sums["mapping_coverage"] > kept.sums["mapping_coverage"]


def test_distance_over_bytes_and_over_characters_is_one_for_plain_letters():
    case, batch, signal = whole(9, dtype=torch.float64)
    edit, _ = run(prepared(case), case.logits, batch, signal)
    by_bytes, _ = run(prepared(case, mapping_distance="bytes"), case.logits, batch, signal)
    assert by_bytes.total.item() == edit.total.item()


def test_a_sequence_weighs_as_many_tokens_as_the_student_has_there():
    case, batch, signal = whole(10, rows=3, dtype=torch.float64)
    objective = prepared(case)
    taught = (batch["student_labels"][:, 1:] != -100).sum(1)
    there = (batch["teacher_labels"][:, 1:] != -100).any(1)
    assert objective.count(batch, signal).item() == (taught * there).sum().item() > 0


def test_it_has_to_know_the_vocabularies():
    case, batch, signal = whole(11)
    with pytest.raises(ConfigError, match="prepare"):
        create("cdm").loss(StudentScores(case.logits, batch), batch, signal)


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"theta": 0.0},
        {"theta": 1.5},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"alignment": "exact"},
        {"rows": "last"},
        {"mapping_distance": "cosine"},
        {"band": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=f"cdm.{next(iter(options))}"):
        create("cdm", **options)


@pytest.mark.parametrize("alignment", ["dtw", "bytes"])
def test_it_learns(alignment):
    case, batch, signal = whole(12, dtype=torch.float64)
    mix = alone("cdm", case, alignment=alignment)
    logits = student_of(case).logits.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.2)
    losses = []
    for _ in range(15):
        loss = mix.from_logits(logits, batch, signal, mix.counts(batch, signal)).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.7 * losses[0]
