"""The `simct` objective: what it takes out of a batch, and non-ASCII vocabularies."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosstill import functional as F
from crosstill.errors import ConfigError
from crosstill.objectives import create
from functional.cases import random_case
from objectives.batches import ToyVocabularies, alone, toy_pair, whole


@pytest.mark.parametrize("divergence", ["kl", "reverse_kl"])
def test_it_is_the_function_on_the_chunks_of_the_batch(divergence):
    case, batch, signal = whole(2, dtype=torch.float64)
    mix = alone("simct", case, divergence=divergence, temperature=1.5)
    loss = mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))
    logprob = F.token_logprobs(case.logits, case.student_ids)
    rows = F.chunk_rows(case.student_chunk, case.teacher_chunk)
    means = [
        torch.stack(
            [
                scores[b][side[b] == c].mean()
                for b, c in zip(rows.batch.tolist(), rows.chunk.tolist(), strict=True)
            ]
        )
        for scores, side in (
            (logprob, case.student_chunk),
            (signal.logprob, case.teacher_chunk),
        )
    ]
    long = [
        [int((side[b] == c).sum()) for b, c in zip(rows.batch, rows.chunk, strict=True)]
        for side in (case.student_chunk, case.teacher_chunk)
    ]
    expected = F.simct_loss(
        case.logits[rows.batch, rows.student_row],
        signal.rows(rows.batch, rows.teacher_row),
        torch.from_numpy(toy_pair(case).vocabulary.shared()),
        *means,
        torch.tensor([max(sizes) > 1 for sizes in zip(*long, strict=True)]),
        divergence=divergence,
        temperature=1.5,
    )
    assert 0 < expected.sums["spans"] < expected.count
    assert loss.parts["simct"].count == expected.count
    assert loss.parts["simct"].total.item() == pytest.approx(expected.total.item(), rel=1e-9)


def test_one_sequence_does_not_touch_another():
    case, batch, signal = whole(3, rows=4, dtype=torch.float64)
    mix = alone("simct", case)
    logits = case.logits.requires_grad_()
    loss = mix.from_logits(logits, batch, signal, {"simct": torch.tensor(1.0)})
    (before,) = torch.autograd.grad(loss.total, logits)
    batch["student_chunk"][2] = -1  # nothing of this sequence can be aligned
    again = mix.from_logits(logits, batch, signal, {"simct": torch.tensor(1.0)})
    (after,) = torch.autograd.grad(again.total, logits)
    assert torch.allclose(before[[0, 1, 3]], after[[0, 1, 3]])
    assert not after[2].any()


def test_tokens_are_shared_by_their_bytes_in_any_script():
    case = random_case(4)
    pair = toy_pair(case)
    student = [b"", "é".encode(), b"\xe4\xb8", "中".encode(), " я".encode(), b"a"]
    teacher = [b"", b"\xc3", "я".encode(), "é".encode(), b"\xe4\xb8", "中".encode()]
    objective = create("simct")
    objective.prepare(replace(pair, vocabulary=ToyVocabularies(student, teacher)))
    assert objective._shared.tolist() == [[0, 0], [1, 3], [2, 4], [3, 5]]


def test_no_common_token_and_no_pair_are_named():
    case, batch, signal = whole(5)

    class Strangers(ToyVocabularies):
        def shared(self):
            return np.zeros((0, 2), np.int64)

    with pytest.raises(ConfigError, match="chunk_kl"):
        create("simct").prepare(replace(toy_pair(case), vocabulary=Strangers([b"a"], [b"b"])))
    mix = alone("simct", case)
    mix.objectives["simct"][0]._shared = None
    with pytest.raises(ConfigError, match="prepare"):
        mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal))


@pytest.mark.parametrize("options", [{"divergence": "jsd"}, {"temperature": 0.0}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        create("simct", **options)
