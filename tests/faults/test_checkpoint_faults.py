"""What a checkpoint survives, and what it refuses: kills, cuts, flips, strangers."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crosstill.errors import CheckpointError
from crosstill.training import checkpoint as ckpt
from crosstill.training.checkpoint import Origin

ORIGIN = Origin({"seed": 1, "max_steps": 9}, "data", "student", "teacher", "weights")

SAVER = """
import shutil, sys
from pathlib import Path
from crosstill.training import checkpoint as ckpt
from crosstill.training.checkpoint import Origin

root, atomic = Path(sys.argv[1]), sys.argv[2] == "atomic"
origin = Origin({}, "d", "s", "t", "w")
start = max([int(p.name.split("-")[1]) for p in root.glob("checkpoint-*")], default=0)
ckpt.clean(root)
for step in range(start + 1, start + 10_000):
    naive = ckpt.checkpoint_folder(root, step)
    folder = ckpt.unfinished_folder(root, step) if atomic else naive
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(bytes([step % 256]) * 200_000)
    if atomic:
        ckpt.commit(folder, root, step, origin, {})
        ckpt.rotate(root, 2)
    print(step, flush=True)
"""


def write(root: Path, step: int, origin: Origin = ORIGIN) -> Path:
    folder = ckpt.unfinished_folder(root, step)
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "inner" / "more").write_bytes(b"m" * 10)
    return ckpt.commit(folder, root, step, origin, {"crosstill": "0"})


def kill_while_saving(root: Path, mode: str, seconds: float) -> int:
    """Kills a process that saves without pause; returns the last step it said was saved."""
    child = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(root), mode], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    first = child.stdout.readline()  # imports are over
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    said = [first, *child.stdout.readlines()]
    child.wait()
    return int([line for line in said if line.endswith("\n")][-1])


def test_a_kill_at_any_instant_leaves_the_last_saved_step(tmp_path):
    rng = random.Random(0)
    last = 0
    for _ in range(4):
        last = max(last, kill_while_saving(tmp_path, "atomic", rng.uniform(0.005, 0.06)))
        newest, refused = ckpt.newest_complete(tmp_path)
        assert newest is not None
        assert ckpt.verify(newest).step >= last
        assert all("never finished" in line for line in refused)


@pytest.mark.slow
def test_many_kills(tmp_path):
    rng = random.Random(1)
    last = 0
    for _ in range(50):
        last = max(last, kill_while_saving(tmp_path, "atomic", rng.uniform(0.002, 0.1)))
        newest, _ = ckpt.newest_complete(tmp_path)
        assert newest is not None
        assert ckpt.verify(newest).step >= last


@pytest.mark.slow
def test_the_harness_catches_a_writer_that_writes_in_place(tmp_path):
    rng = random.Random(2)
    incomplete = 0
    for number in range(20):
        root = tmp_path / str(number)
        kill_while_saving(root, "naive", rng.uniform(0.002, 0.05))
        newest = max(root.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
        sizes = [p.stat().st_size for p in newest.iterdir()]
        incomplete += sizes != [200_000] * 3
    assert incomplete > 0


def damage_truncate(folder: Path) -> None:
    file = folder / "weights"
    file.write_bytes(file.read_bytes()[:-1])


def damage_empty(folder: Path) -> None:
    (folder / "weights").write_bytes(b"")


def damage_flip(folder: Path) -> None:
    data = bytearray((folder / "weights").read_bytes())
    data[500] ^= 1
    (folder / "weights").write_bytes(data)


def damage_missing(folder: Path) -> None:
    (folder / "inner" / "more").unlink()


def damage_extra(folder: Path) -> None:
    (folder / "extra").write_bytes(b"x")


def damage_no_manifest(folder: Path) -> None:
    (folder / ckpt.MANIFEST).unlink()


def damage_manifest(folder: Path) -> None:
    (folder / ckpt.MANIFEST).write_text('{"format_version": 1')


def damage_newer(folder: Path) -> None:
    fields = json.loads((folder / ckpt.MANIFEST).read_text())
    fields["format_version"] = 99
    fields["versions"] = {"crosstill": "7.1"}
    (folder / ckpt.MANIFEST).write_text(json.dumps(fields))


DAMAGES = {
    damage_truncate: "weights has 999 bytes, its manifest says 1000",
    damage_empty: "weights has 0 bytes",
    damage_flip: "weights does not have the SHA-256",
    damage_missing: "inner/more is missing",
    damage_extra: "extra is not in the manifest",
    damage_no_manifest: "has no manifest.json",
    damage_manifest: "is not a manifest",
    damage_newer: "format 99, written by crosstill 7.1",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_is_named_and_the_checkpoint_before_is_taken(tmp_path, damage):
    good, bad = write(tmp_path, 10), write(tmp_path, 20)
    assert ckpt.newest_complete(tmp_path) == (bad, [])
    damage(bad)
    with pytest.raises(CheckpointError, match=DAMAGES[damage]):
        ckpt.verify(bad)
    newest, refused = ckpt.newest_complete(tmp_path)
    assert newest == good
    assert len(refused) == 1
    assert DAMAGES[damage] in refused[0]


def test_a_pickle_in_a_checkpoint_is_refused(tmp_path):
    folder = ckpt.unfinished_folder(tmp_path, 1)
    folder.mkdir()
    (folder / "optimizer.pt").write_bytes(b"cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt.*pickle"):
        ckpt.verify(ckpt.commit(folder, tmp_path, 1, ORIGIN, {}))


def test_the_order_is_by_step_never_by_time_or_name(tmp_path):
    newest = write(tmp_path, 100)
    for step in (9, 20):
        write(tmp_path, step)
    os.utime(newest, (1, 1))
    assert ckpt.newest_complete(tmp_path)[0] == newest
    assert ckpt.rotate(tmp_path, 1) == ["checkpoint-9", "checkpoint-20"]
    assert ckpt.newest_complete(tmp_path) == (newest, [])


def test_rotation_keeps_the_best(tmp_path):
    best = write(tmp_path, 1)
    for step in (2, 3, 4):
        write(tmp_path, step)
    ckpt.rotate(tmp_path, 2, protected=best)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]


def test_an_empty_folder_with_a_high_number_does_not_count(tmp_path):
    good = write(tmp_path, 10)
    (tmp_path / "checkpoint-20").mkdir()
    newest, refused = ckpt.newest_complete(tmp_path)
    assert newest == good
    assert "never finished" in refused[0]


def test_leftovers_are_reported_and_cleaned(tmp_path):
    write(tmp_path, 1)
    ckpt.unfinished_folder(tmp_path, 2).mkdir()
    assert "never finished" in ckpt.newest_complete(tmp_path)[1][0]
    assert len(ckpt.clean(tmp_path)) == 1
    assert ckpt.newest_complete(tmp_path)[1] == []


def test_a_refused_folder_at_the_final_place_is_kept_under_another_name(tmp_path):
    damage_flip(write(tmp_path, 5))
    write(tmp_path, 5)
    assert ckpt.verify(tmp_path / "checkpoint-5").step == 5
    assert len(list(tmp_path.glob("refused-checkpoint-5-*"))) == 1


def test_another_run_is_refused_and_every_difference_listed(tmp_path):
    manifest = ckpt.verify(write(tmp_path, 5))
    ckpt.check_origin(manifest, ORIGIN)
    other = Origin({"seed": 2, "max_steps": 9}, "edited", "student", "teacher", "weights", 2)
    with pytest.raises(CheckpointError) as caught:
        ckpt.check_origin(manifest, other)
    for line in ("seed: 1 -> 2", "data: 'data' -> 'edited'", "world_size: 1 -> 2"):
        assert line in str(caught.value)
    assert "max_steps" not in str(caught.value)


def test_nothing_there(tmp_path):
    assert ckpt.newest_complete(tmp_path / "none") == (None, [])
    assert ckpt.rotate(tmp_path, 1) == []


def test_a_copied_checkpoint_is_as_good(tmp_path):
    write(tmp_path / "one", 3)
    shutil.copytree(tmp_path / "one" / "checkpoint-3", tmp_path / "two" / "checkpoint-3")
    assert ckpt.newest_complete(tmp_path / "two")[0] is not None
