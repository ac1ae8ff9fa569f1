"""Weightings in the trainer: what they measure, what they learn, and that no cut changes them."""

import numpy as np
import pytest
import torch

import tiny_training as tiny
from crosstill.errors import ConfigError
from crosstill.training.balance import last_block
from oracle import weighting as oracle

ALM_SFT = {"alm": {"temperature": 5.0}, "sft": {"weight": 0.5}}
METHODS = ["gradmag", "gradnorm", "pcgrad", "uncertainty"]
ONE_STEP = {
    "train_dataset": tiny.CHATS,
    "max_steps": 1,
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "objectives": ALM_SFT,
    **tiny.chat_tokenizers(),
}


def stepped(folder, weighting, batch=8, accumulation=1, **settings):
    """(gradient, trainer, metrics) of one step over all chats."""
    keep = tiny.Gradients()
    run = tiny.trainer(
        folder,
        callbacks=[keep],
        weighting=weighting,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **{**ONE_STEP, **settings},
    )
    run.train()
    return keep.vector, run, run.state.log_history[0]


def apart(folder, name, **settings):
    """One objective's whole gradient with weight 1, by name of the weight, and its value."""
    options = {key: value for key, value in ALM_SFT[name].items() if key != "weight"}
    gradient, run, line = stepped(folder, "fixed", objectives={name: options}, **settings)
    sizes = [(n, p.numel()) for n, p in run.model.named_parameters()]
    parts = gradient.double().split([size for _, size in sizes])
    return {n: part for (n, _), part in zip(sizes, parts, strict=True)}, line[f"loss/{name}"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Each objective's gradient and value, from runs of their own."""
    folder = tmp_path_factory.mktemp("apart")
    return {name: apart(folder / name, name) for name in ALM_SFT}


def in_last_block(gradient):
    return torch.cat([part for name, part in gradient.items() if "layers.1." in name])


def whole(gradient):
    return torch.cat(list(gradient.values()))


def assert_close(one, other, share=2e-6):
    assert (one - other).abs().max() <= share * other.abs().max()


@pytest.mark.parametrize("fused", [True, False])
def test_gradmag_weighs_by_the_last_blocks_gradients(tmp_path, both, fused):
    gradient, run, line = stepped(tmp_path, "gradmag", fused_head=fused)
    assert len(run.model.model.layers) == 2
    blocks = [in_last_block(both[name][0]).numpy() for name in ALM_SFT]
    alm, sft = oracle.gradmag(blocks)
    assert line["weight/alm"] == pytest.approx(alm, rel=1e-4)
    assert line["weight/sft"] == pytest.approx(0.5 * sft, rel=1e-4)
    expected = alm * whole(both["alm"][0]) + 0.5 * sft * whole(both["sft"][0])
    assert_close(gradient, expected, 1e-4)


@pytest.mark.parametrize("fused", [True, False])
def test_pcgrad_sums_the_projected_gradients(tmp_path, both, fused):
    gradient, _, line = stepped(tmp_path, "pcgrad", fused_head=fused)
    parts = [whole(both["alm"][0]).numpy(), 0.5 * whole(both["sft"][0]).numpy()]
    expected = torch.from_numpy(oracle.pcgrad(parts, [[1], [0]]))
    assert_close(gradient, expected, 1e-5)
    assert line["loss"] == pytest.approx(both["alm"][1] + 0.5 * both["sft"][1], rel=1e-5)


def test_pcgrad_takes_a_conflict_away(tmp_path, monkeypatch):
    """Two objectives that want opposite things: the second is the first with its sign turned."""
    from crosstill.functional.losses import LossSum
    from crosstill.objectives.sft import Sft

    real = Sft.loss

    def turned(self, student, batch, signal):
        part = real(self, student, batch, signal)
        return LossSum(-0.5 * part.total, part.count, part.sums)

    settings = {"objectives": {"sft": {}, "alm": {"temperature": 1.0}}, "fused_head": False}
    straight, *_ = stepped(tmp_path / "a", "fixed", **settings)
    monkeypatch.setattr(Sft, "loss", turned)
    names = {name: {**settings, "objectives": {name: {"weight": 1.0}}} for name in ("sft", "alm")}
    names["alm"]["objectives"]["alm"]["temperature"] = 1.0
    alone = {n: stepped(tmp_path / n, "fixed", **s)[0].double() for n, s in names.items()}
    assert alone["sft"] @ alone["alm"] < 0
    mixed, _, line = stepped(tmp_path / "b", "pcgrad", **settings)
    expected = oracle.pcgrad([alone["sft"].numpy(), alone["alm"].numpy()], [[1], [0]])
    assert_close(mixed, torch.from_numpy(expected), 1e-5)
    assert line["weight/sft"] > 1.0
    assert line["weight/alm"] > 1.0
    assert not torch.allclose(mixed, straight)


def test_gradnorm_learns_from_what_it_measures(tmp_path, both):
    rate = 0.01
    settings = {"parts_learning_rate": rate, "gradnorm_alpha": 1.5, "warmup_steps": 0}
    _, run, line = stepped(tmp_path, "gradnorm", **settings)
    assert (line["weight/alm"], line["weight/sft"]) == (1.0, 0.5)  # the first step is unweighted
    norms = [float(in_last_block(both[n][0]).norm()) * w for n, w in (("alm", 1.0), ("sft", 0.5))]
    values = [both[name][1] for name in ALM_SFT]
    targets = oracle.gradnorm_targets([1, 1], norms, values, values, 1.5)
    assert targets[0] == pytest.approx(targets[1])  # in the first step all rates are 1
    expected = [np.sign(n - t) for n, t in zip(norms, targets, strict=True)]
    balance = run.learnable.balance
    assert sorted(expected) == [-1, 1]
    # AdamW's first step is its learning rate against the sign of the gradient.
    moved = (balance.weights - 1.0).tolist()
    assert moved == pytest.approx([-rate * x for x in expected], rel=1e-3)
    assert balance.first_losses.tolist() == pytest.approx(values, rel=1e-5)


def test_gradnorms_weights_keep_their_sum_and_go_where_they_are_needed(tmp_path, both):
    run = tiny.trainer(
        tmp_path,
        weighting="gradnorm",
        parts_learning_rate=0.05,
        warmup_steps=0,
        lr_scheduler_type="constant",
        per_device_train_batch_size=8,
        **{**ONE_STEP, "max_steps": 12},
    )
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    for line in lines:
        assert line["weight/alm"] + 2 * line["weight/sft"] == pytest.approx(2.0, rel=1e-5)
        assert min(line["weight/alm"], line["weight/sft"]) > 0
    longer = in_last_block(both["alm"][0]).norm() > 0.5 * in_last_block(both["sft"][0]).norm()
    assert (lines[-1]["weight/alm"] < 0.7) == bool(longer)


def test_uncertainty_learns_its_variances(tmp_path, both):
    seen = []
    run = tiny.trainer(
        tmp_path,
        weighting="uncertainty",
        parts_learning_rate=0.1,
        warmup_steps=0,
        lr_scheduler_type="constant",
        learning_rate=1e-9,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **{**ONE_STEP, "max_steps": 3},
    )
    balance = run.learnable.balance

    class Look(tiny.hf.TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            seen.append((balance.log_variances.tolist(), balance.log_variances.grad.tolist()))

    run.add_callback(Look())
    run.train()
    values = [both[name][1] for name in ALM_SFT]
    for variances, gradient in seen:
        for i, weight in enumerate((1.0, 0.5)):
            nudge = np.eye(2)[i] * 1e-5
            slope = oracle.uncertainty_loss(values, variances + nudge)
            slope = (slope - oracle.uncertainty_loss(values, variances - nudge)) / 2e-5
            assert gradient[i] == pytest.approx(weight * slope, rel=1e-3)
    last = run.state.log_history[2]
    assert last["weight/alm"] == pytest.approx(float(np.exp(-seen[2][0][0])), rel=1e-5)
    assert last["weight/alm"] != 1.0
    assert last["loss"] == pytest.approx(
        sum(last[f"weight/{name}"] * last[f"loss/{name}"] for name in ALM_SFT), rel=1e-5
    )


@pytest.mark.parametrize("weighting", METHODS)
@pytest.mark.parametrize("fused", [True, False])
def test_no_cut_changes_a_weighted_step(tmp_path, weighting, fused):
    found = [
        stepped(tmp_path / str(batch), weighting, batch, cuts, fused_head=fused)
        for batch, cuts in ((8, 1), (2, 4))
    ]
    first, _, line = found[0]
    assert first.abs().max() > 1e-6
    for gradient, _, other in found[1:]:
        assert_close(gradient, first, 1e-5)
        for name in ("loss", "weight/alm", "weight/sft", "bits_per_byte"):
            assert other[name] == pytest.approx(line[name], rel=1e-4), name


@pytest.mark.parametrize("weighting", METHODS)
def test_dropout_is_drawn_as_without_a_measurement(tmp_path, weighting):
    """What is measured before a step uses the masks of the step, and leaves none out."""
    runs = [
        stepped(tmp_path / str(cuts), weighting, 4, 2, model=tiny.student(attention_dropout=0.3))
        for cuts in range(2)
    ]
    assert torch.equal(runs[0][0], runs[1][0])
    if weighting != "pcgrad":  # whose gradient is no sum with the weights of a plain run
        _, _, line = runs[0]
        weights = {n: {**ALM_SFT[n], "weight": line[f"weight/{n}"]} for n in ALM_SFT}
        plain, *_ = stepped(
            tmp_path / "plain", "fixed", 4, 2,
            model=tiny.student(attention_dropout=0.3), objectives=weights,
        )  # fmt: skip
        assert_close(runs[0][0], plain, 1e-5)


@pytest.mark.parametrize("weighting", METHODS)
def test_an_objective_without_a_gradient_stops_no_other(tmp_path, weighting):
    """A student that equals its teacher: alm is 0 and so is its gradient."""
    one = {"processing_class": tiny.chat_tokenizers()["processing_class"]}
    one["teacher_processing_class"] = one["processing_class"]
    settings = {**one, "model": tiny.student(seed=9), "teacher_model": tiny.student(seed=9)}
    gradient, _, line = stepped(tmp_path, weighting, **settings)
    assert torch.isfinite(gradient).all()
    assert line["loss/alm"] == pytest.approx(0.0, abs=1e-6)
    assert line["weight/sft"] >= 0.2
    assert gradient.norm() > 0.1 * line["weight/sft"]


@pytest.mark.parametrize("weighting", METHODS)
def test_a_step_with_nothing_to_learn_is_taken(tmp_path, weighting):
    gradient, run, _ = stepped(tmp_path, weighting, train_dataset=[{"text": ""}] * 8)
    assert gradient.abs().max() == 0.0
    assert tiny.losses(run) == [0.0]


@pytest.mark.parametrize("weighting", ["gradmag", "pcgrad"])
def test_activation_checkpointing_changes_nothing(tmp_path, weighting):
    plain, *_ = stepped(tmp_path / "a", weighting)
    saved, *_ = stepped(tmp_path / "b", weighting, activation_checkpointing=True)
    assert_close(saved, plain)


@pytest.mark.parametrize("weighting", ["gradmag", "pcgrad"])
def test_an_adapter_is_what_is_measured(tmp_path, weighting):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"])
    gradient, run, _ = stepped(tmp_path, weighting, peft_config=config)
    assert torch.isfinite(gradient).all()
    names = {id(p): n for n, p in run.model.named_parameters()}
    assert all("layers.1" in names[id(p)] and "lora" in names[id(p)] for p in last_block(run.model))


def test_the_last_block_that_is_trained():
    model = tiny.student()
    model.model.layers[1].requires_grad_(False)
    assert {id(p) for p in last_block(model)} == {id(p) for p in model.model.layers[0].parameters()}
    with pytest.raises(ConfigError, match="no list of 2 blocks"):
        last_block(model.requires_grad_(False))


def test_a_weighting_needs_two_objectives(tmp_path):
    with pytest.raises(ConfigError, match="sft stands alone"):
        tiny.config(tmp_path, weighting="gradmag", objectives="sft")
    with pytest.raises(ConfigError, match=r"weighting is 'gradmug': fixed \| gradmag"):
        tiny.config(tmp_path, weighting="gradmug")


def test_schedules_are_followed_and_logged(tmp_path):
    fade = {"schedule": "linear", "start": 0.0, "end": 1.0, "over": 0.75}
    back = {"schedule": "cosine", "start": 2.0, "end": 0.0}
    run = tiny.trainer(
        tmp_path, objectives={"alm": {"weight": back}, "sft": {"weight": fade}}, max_steps=4
    )
    run.train()
    lines = [line for line in run.state.log_history if "loss" in line]
    assert [line["weight/sft"] for line in lines] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [line["weight/alm"] for line in lines] == pytest.approx([2.0, 1.5, 0.5, 0.0])
    for line in lines:
        assert line["loss"] == pytest.approx(
            sum(line[f"weight/{n}"] * line[f"loss/{n}"] for n in ("alm", "sft")), rel=1e-5
        )
