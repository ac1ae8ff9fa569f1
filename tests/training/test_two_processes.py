"""Two processes take the step of one, and write one checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosstill.training import checkpoint as ckpt

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import tiny_training as tiny

folder, batch, head, resume = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
keep = tiny.Gradients()
run = tiny.trainer(
    folder, train_dataset=tiny.CHATS, callbacks=[keep], per_device_train_batch_size=batch,
    max_steps=2, save_strategy="steps", save_steps=1, max_grad_norm=0.0, fused_head=head == "fused",
    train_sampling_strategy="sequential", objectives={"alm": {"temperature": 5.0}, "sft": {}},
    **tiny.chat_tokenizers(),
)
run.train(resume_from_checkpoint=resume == "resume")
if run.is_world_process_zero():
    save_file({"gradient": keep.vector}, folder / "gradient.safetensors")
    lines = [line for line in run.state.log_history if "loss" in line]
    (folder / "lines.json").write_text(json.dumps(lines))
"""


def run_of(folder: Path, processes: int, batch: int, head: str, resume: str = "new"):
    folder.mkdir(exist_ok=True)
    script = folder.parent / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        start += ["--master_port", str(29_500 + os.getpid() % 1000)]
    done = subprocess.run(
        [*start, str(script), str(folder), str(batch), head, resume],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = json.loads((folder / "lines.json").read_text())
    return load_file(folder / "gradient.safetensors")["gradient"], lines


@pytest.mark.slow
@pytest.mark.parametrize("head", ["fused", "plain"])
def test_two_processes_take_the_step_of_one(tmp_path, head):
    one, lines = run_of(tmp_path / "one", 1, 8, head)
    two, others = run_of(tmp_path / "two", 2, 4, head)
    assert (one - two).abs().max() <= 2e-6 * one.abs().max()
    for line, other in zip(lines, others, strict=True):
        for name in ("loss", "loss/alm", "loss/sft", "bits_per_byte", "student_tokens"):
            assert other[name] == pytest.approx(line[name], rel=1e-5), name
    newest, refused = ckpt.newest_complete(tmp_path / "two")
    assert newest == tmp_path / "two" / "checkpoint-2"
    assert refused == []
    names = {path.name for path in newest.iterdir()}
    assert {"random_0.json", "random_1.json"} <= names

    newest.rename(tmp_path / "gone")
    again, resumed = run_of(tmp_path / "two", 2, 4, head, "resume")
    assert torch.equal(again, two)
    assert resumed == others
