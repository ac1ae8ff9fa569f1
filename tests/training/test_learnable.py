"""What objectives and weightings learn themselves: trained, clipped, guarded, saved, resumed."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import learning_parts
import tiny_training as tiny
from crosstill.errors import CheckpointError, ConfigError, NumericsError
from crosstill.training import checkpoint as ckpt
from crosstill.training.learnable import FILE

FADE = {"schedule": "cosine", "start": 1.0, "end": 0.25}
SETTINGS = {
    "objectives": {"tempered": {}, "alm": {"temperature": 5.0, "weight": FADE}},
    "max_steps": 6,
    "warmup_steps": 0,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "parts_learning_rate": 0.05,
}


@pytest.fixture(autouse=True)
def tempered():
    with learning_parts.registered():
        yield


def run_of(folder, **settings):
    model = tiny.student(attention_dropout=0.2)
    return tiny.trainer(folder, model=model, **{**SETTINGS, **settings})


def state(run):
    return {name: p.detach().clone() for name, p in run.learnable.named_parameters()}


def test_parts_are_a_group_of_their_own_and_learn(tmp_path):
    run = run_of(tmp_path, learning_rate=1e-4, weight_decay=0.3)
    before = state(run)
    run.train()
    names = ["objectives.tempered.log", "objectives.tempered.matrix"]
    assert list(before) == names
    for name, value in state(run).items():
        assert not torch.equal(value, before[name]), name
    group = run.optimizer.param_groups[-1]
    assert [id(p) for p in group["params"]] == [id(p) for p in run.learnable.parameters()]
    assert (group["initial_lr"], group["weight_decay"]) == (0.05, 0.0)
    assert run.optimizer.param_groups[0]["initial_lr"] == 1e-4


def test_parts_take_the_runs_rate_where_none_is_set(tmp_path):
    run = run_of(tmp_path, parts_learning_rate=None, learning_rate=2e-3)
    assert run.create_optimizer().param_groups[-1]["lr"] == 2e-3
    assert len(run.create_optimizer().param_groups) == 3  # asked twice, it is added once


@pytest.mark.parametrize("weighting", ["fixed", "gradnorm", "uncertainty", "pcgrad"])
def test_a_resumed_run_goes_on_bit_by_bit(tmp_path, weighting):
    whole = run_of(tmp_path / "whole", weighting=weighting)
    whole.train()
    folder = tmp_path / "again"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", folder / "checkpoint-3")
    again = run_of(folder, weighting=weighting)
    again.train(resume_from_checkpoint=True)
    assert tiny.losses(again) == tiny.losses(whole)
    one, other = state(whole), state(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    lines = [run.state.log_history[-2] for run in (whole, again)]
    for key in ("weight/tempered", "weight/alm"):
        assert lines[0][key] == lines[1][key]
    saved, resumed = (load_file(f / "checkpoint-6" / FILE) for f in (tmp_path / "whole", folder))
    assert saved.keys() == resumed.keys() >= one.keys()
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)


def test_a_checkpoint_holds_them_and_the_model_does_not(tmp_path):
    run = run_of(tmp_path)
    run.train()
    manifest = ckpt.verify(tmp_path / "checkpoint-6")
    assert FILE in manifest.files
    assert not [n for n in load_file(tmp_path / "checkpoint-6" / "model.safetensors") if "log" in n]
    plain = tiny.trainer(tmp_path / "plain", save_strategy="steps", save_steps=4)
    plain.train()
    assert not (tmp_path / "plain" / "checkpoint-4" / FILE).exists()


@pytest.mark.parametrize("damage", ["missing", "other"])
def test_parts_that_cannot_be_read_are_an_error(tmp_path, damage):
    run = run_of(tmp_path)
    file = tmp_path / FILE
    if damage == "other":
        save_file({"objectives.tempered.log": torch.zeros(())}, file)
    with pytest.raises(CheckpointError, match="does not hold what these objectives learn"):
        run.learnable.load(file.parent)


@pytest.mark.parametrize(("batch", "cuts"), [(2, 3)])
@pytest.mark.parametrize("weighting", ["fixed", "gradmag", "pcgrad"])
def test_no_cut_changes_their_gradient(tmp_path, weighting, batch, cuts):
    found = []
    for size, number in ((6, 1), (batch, cuts)):
        run = tiny.trainer(
            tmp_path / str(size),
            weighting=weighting,
            objectives={"tempered": {"weight": 0.5}, "alm": {}},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=number,
            max_steps=1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
        )
        run.train()
        found.append([p.grad.clone() for p in run.learnable.parameters()])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 1e-6  # gradmag gives sft, the longer one, little weight
        assert torch.allclose(one, other, rtol=1e-4)


def test_they_are_clipped_with_the_student(tmp_path):
    bound, norms = 1e-3, []

    class Look(tiny.hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            grads = [p.grad.flatten() for p in (*model.parameters(), *run.learnable.parameters())]
            norms.append(float(torch.cat(grads).norm()))

    run = run_of(tmp_path, max_grad_norm=bound, max_steps=1, callbacks=[Look()])
    run.train()
    assert norms == pytest.approx([bound], rel=1e-3)


def test_a_balance_is_clipped_by_itself(tmp_path):
    lengths = []

    class Look(tiny.hf.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, *, model, **kwargs):
            grads = [
                p.grad.flatten() for p in (*model.parameters(), *run.learnable.parts.parameters())
            ]
            balance = [p.grad for p in run.learnable.balance.parameters()]
            lengths.append((float(torch.cat(grads).norm()), float(balance[0].norm())))

    run = run_of(
        tmp_path, weighting="uncertainty", max_grad_norm=1e-3, max_steps=1, callbacks=[Look()]
    )
    run.train()
    assert lengths[0] == pytest.approx((1e-3, 1e-3), rel=1e-2)


def test_a_gradient_of_a_part_that_is_not_finite_stops_the_run(tmp_path):
    run = run_of(tmp_path, max_grad_norm=0.0)
    before = state(run)
    part = run.mix.objectives["tempered"][0].parts
    part.matrix.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NumericsError, match=r"objectives\.tempered\.matrix"):
        run.train()
    assert all(torch.equal(before[name], value) for name, value in state(run).items())


def test_a_scheduler_of_ones_own_cannot_know_them(tmp_path):
    model = tiny.student()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ConfigError, match=r"optimizers=\(optimizer, None\)"):
        run_of(tmp_path, optimizers=(optimizer, scheduler))
    run = run_of(tmp_path, optimizers=(optimizer, None), max_steps=1)
    run.train()
    assert len(optimizer.param_groups) == 2
