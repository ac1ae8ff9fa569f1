"""A resumed run is the uninterrupted one: rows, losses, weights and moments, bit by bit."""

import json
import shutil

import pytest
import torch

import tiny_training as tiny
from crosstill.errors import CheckpointError, ConfigError
from crosstill.training.state import load_state

SETTINGS = {
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_steps": 8,  # four steps an epoch, the last of them short: 22 rows, 8 micro-batches
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": None,
    "objectives": {"alm": {"temperature": 5.0}, "sft": {}},
}


def run_of(folder, rows=22, **settings):
    seen = tiny.Seen()
    model = tiny.student(attention_dropout=0.2)
    run = tiny.trainer(
        folder,
        model=model,
        callbacks=[seen],
        train_dataset=tiny.rows(rows),
        **{**SETTINGS, **settings},
    )
    seen.run = run
    return run, seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run, seen = run_of(folder)
    run.train()
    return folder, run, seen


def copied(whole, folder, step):
    shutil.copytree(whole[0] / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(whole[0] / "metrics.jsonl", folder)
    return folder


@pytest.mark.parametrize("step", [3, 4], ids=["inside an epoch", "at the edge of one"])
def test_a_resumed_run_equals_the_uninterrupted_one(whole, tmp_path, step):
    copied(whole, tmp_path, step)
    run, seen = run_of(tmp_path, dataloader_num_workers=2 if step == 3 else 0)
    run.train(resume_from_checkpoint=True)
    assert seen.steps == whole[2].steps[step:]
    assert tiny.losses(run) == tiny.losses(whole[1])
    for name, value in whole[1].model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name
    for file in ("optimizer", "scheduler", "random_0", "progress"):
        mine, theirs = (load_state(f / "checkpoint-8", file) for f in (tmp_path, whole[0]))
        assert mine.keys() == theirs.keys()
        # Training draws nothing from Python's own generator; libraries do, at times of their own.
        for key in mine.keys() - {"python"}:
            assert flat(mine[key]) == flat(theirs[key]), (file, key)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert [s for s in steps if s] == [*range(1, 9), 8]


def test_a_run_resumed_at_its_end_takes_no_step(tmp_path):
    settings = {"max_steps": 3, "lr_scheduler_type": "constant"}  # ends inside an epoch
    first, _ = run_of(tmp_path, **settings)
    first.train()
    run, seen = run_of(tmp_path, **settings)
    run.train(resume_from_checkpoint=True)
    assert seen.steps == []
    assert run.state.global_step == 3
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


def flat(value) -> list[float]:
    if isinstance(value, dict):
        return [x for key in sorted(value, key=str) for x in flat(value[key])]
    if isinstance(value, (list, tuple)):
        return [x for inner in value for x in flat(inner)]
    if isinstance(value, torch.Tensor):
        return value.double().flatten().tolist()
    if hasattr(value, "tolist"):
        return [float(x) for x in value.tolist()]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_every_row_is_seen_once_an_epoch_and_in_another_order(whole):
    steps = whole[2].steps
    epochs = [[row for step in part for row in step] for part in (steps[:4], steps[4:])]
    for epoch in epochs:
        assert sorted(epoch) == list(range(22))
    assert epochs[0] != epochs[1]


def test_the_checkpoint_holds_no_pickle(whole):
    names = {path.name for path in (whole[0] / "checkpoint-8").rglob("*")}
    assert {"manifest.json", "model.safetensors", "optimizer.safetensors"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 -> 0.002"),
        ({"rows": 21}, "data: "),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 3 -> 2"),
        ({"objectives": "alm"}, "objectives: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_refused(whole, tmp_path, changes, difference):
    copied(whole, tmp_path, 3)
    run, _ = run_of(tmp_path, **changes)
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        run.train(resume_from_checkpoint=True)
    assert difference in str(caught.value)


def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, caplog):
    for step in (2, 3):
        shutil.copytree(whole[0] / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    weights = tmp_path / "checkpoint-3" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    run, seen = run_of(tmp_path)
    run.train(resume_from_checkpoint=True)
    assert seen.steps == whole[2].steps[2:]
    assert "SHA-256" in caplog.text
    assert list(tmp_path.glob("refused-checkpoint-3-*"))


def test_a_named_damaged_checkpoint_is_an_error(whole, tmp_path):
    copied(whole, tmp_path, 3)
    (tmp_path / "checkpoint-3" / "manifest.json").unlink()
    run, _ = run_of(tmp_path)
    with pytest.raises(CheckpointError, match="never finished"):
        run.train(resume_from_checkpoint=tmp_path / "checkpoint-3")


def test_nothing_to_resume_is_an_error(tmp_path):
    run, _ = run_of(tmp_path)
    with pytest.raises(CheckpointError, match="there is none"):
        run.train(resume_from_checkpoint=True)


def test_a_folder_with_checkpoints_is_not_written_over(whole, tmp_path):
    copied(whole, tmp_path, 3)
    run, _ = run_of(tmp_path)
    with pytest.raises(ConfigError, match="has checkpoints already"):
        run.train()


def test_a_failed_save_leaves_the_one_before(tmp_path, monkeypatch):
    run, _ = run_of(tmp_path)
    real = run._save_rng_state

    def fail_at_two(folder):
        if run.state.global_step == 2:
            raise OSError(28, "No space left on device")
        real(folder)

    monkeypatch.setattr(run, "_save_rng_state", fail_at_two)
    with pytest.raises(CheckpointError, match="No space left"):
        run.train()
    assert sorted(p.name for p in tmp_path.glob("*checkpoint*")) == ["checkpoint-1"]


def test_old_checkpoints_go_by_step(tmp_path):
    run, _ = run_of(tmp_path, save_total_limit=2)
    run.train()
    assert sorted(p.name for p in tmp_path.glob("*checkpoint*")) == ["checkpoint-7", "checkpoint-8"]
