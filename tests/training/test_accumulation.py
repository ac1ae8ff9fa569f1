"""How a step is cut into micro-batches changes no gradient."""

import pytest
import torch

import tiny_training as tiny

CUTS = [(8, 1), (2, 4), (1, 8)]


def gradients(folder, batch: int, accumulation: int, rows, tokenizers, **settings):
    """The gradient of one step over all rows, and the trainer."""
    keep = tiny.Gradients()
    run = tiny.trainer(
        folder,
        callbacks=[keep],
        train_dataset=rows,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        **tokenizers,
        **settings,
    )
    run.train()
    return keep.vector, run


OBJECTIVES = {
    "merged and debiased": {"alm": {"merge_threshold": 0.1, "debias": True}},
    "neither": {"alm": {"merge_threshold": 0.0, "debias": False}},
    "sharp": {"alm": {"temperature": 1.0}},
    "with sft": {"alm": {"weight": 2.0, "temperature": 5.0}, "sft": {"weight": 0.5}},
}


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal to a millionth of the largest number: what the order of float32 sums may change."""
    assert (one - other).abs().max() <= 1e-6 * other.abs().max()


@pytest.mark.parametrize("objectives", OBJECTIVES)
@pytest.mark.parametrize("fused", [True, False])
def test_every_cut_gives_the_same_gradient(tmp_path, objectives, fused):
    found = [
        gradients(
            tmp_path / f"{batch}",
            batch,
            accumulation,
            tiny.CHATS,
            tiny.chat_tokenizers(),
            objectives=OBJECTIVES[objectives],
            fused_head=fused,
        )
        for batch, accumulation in CUTS
    ]
    whole = found[0][0]
    assert whole.abs().max() > 1e-5
    for gradient, run in found[1:]:
        assert_equal(gradient, whole)
        assert tiny.losses(run)[0] == pytest.approx(tiny.losses(found[0][1])[0], rel=1e-5)


def test_a_mean_of_means_would_differ(tmp_path):
    """The rows are unequal enough for the test above to be able to fail."""
    singles = []
    rows = tiny.CHATS[:3]
    for number, row in enumerate(rows):
        gradient, _ = gradients(tmp_path / str(number), 1, 1, [row], tiny.chat_tokenizers())
        singles.append(gradient)
    whole, _ = gradients(tmp_path / "all", 3, 1, rows, tiny.chat_tokenizers())
    assert (torch.stack(singles).mean(0) - whole).abs().max() > 1e-2 * whole.abs().max()


def test_a_short_last_step_is_divided_by_its_own_count(tmp_path):
    rows = tiny.CHATS[:5]
    whole, _ = gradients(tmp_path / "a", 5, 1, rows, tiny.chat_tokenizers())
    cut, run = gradients(tmp_path / "b", 1, 8, rows, tiny.chat_tokenizers())
    assert run.state.global_step == 1
    assert_equal(cut, whole)


def test_the_fused_head_gives_the_gradient_of_the_plain_one(tmp_path):
    for name in ("merged and debiased", "with sft"):
        settings = {"objectives": OBJECTIVES[name], "rows": tiny.rows(8), "tokenizers": {}}
        fused, run = gradients(tmp_path / name / "f", 4, 2, fused_head=True, **settings)
        plain, other = gradients(tmp_path / name / "p", 4, 2, fused_head=False, **settings)
        assert run.head is not None
        assert other.head is None
        assert_equal(fused, plain)
        lines = [r.state.log_history[0] for r in (run, other)]
        for key in lines[0].keys() & lines[1].keys():
            assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-4), key
