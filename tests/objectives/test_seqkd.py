"""The `seqkd` objective is `sft` under the name of the paper."""

import torch

from crosstill.objectives import Mix, create
from objectives.batches import alone, whole


def test_it_is_sft_on_the_rows_it_is_given():
    case, batch, signal = whole(1)
    losses = [
        mix.from_logits(case.logits, batch, signal, mix.counts(batch, signal)).total
        for mix in (alone("seqkd", case), alone("sft", case))
    ]
    assert torch.equal(*losses)
    assert losses[0] > 0


def test_it_is_fused_alone_and_not_beside_sft():
    seqkd, sft, alm = ((create(name), 1.0) for name in ("seqkd", "sft", "alm"))
    mask = torch.ones(3, dtype=torch.bool)
    assert Mix({"seqkd": seqkd}).can_fuse
    assert Mix({"seqkd": seqkd, "alm": alm}, boundary_mask=mask).can_fuse
    assert not Mix({"seqkd": seqkd, "sft": sft}).can_fuse
