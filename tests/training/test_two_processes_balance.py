"""Two processes weigh a step as one does, and train what objectives learn as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import learning_parts, tiny_training as tiny

folder, batch, weighting, fused = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
objectives = {"alm": {"temperature": 5.0}, "sft" if fused == "True" else "tempered": {}}
keep = tiny.Gradients()
with learning_parts.registered():
    run = tiny.trainer(
        folder, train_dataset=tiny.CHATS, callbacks=[keep], per_device_train_batch_size=batch,
        gradient_accumulation_steps=2, max_steps=3, max_grad_norm=0.0, weighting=weighting,
        fused_head=fused == "True", objectives=objectives, parts_learning_rate=0.01,
        train_sampling_strategy="sequential", warmup_steps=0, learning_rate=1e-4,
        **tiny.chat_tokenizers(),
    )
    run.train()
parts = {name: p.detach() for name, p in run.learnable.named_parameters()}
rank = run.args.process_index
save_file({"gradient": keep.vector, **parts}, folder / f"rank{rank}.safetensors")
if run.is_world_process_zero():
    lines = [line for line in run.state.log_history if "loss" in line]
    (folder / "lines.json").write_text(json.dumps(lines))
if torch.distributed.is_initialized():  # its threads can abort a process that merely ends
    torch.distributed.destroy_process_group()
"""


def run_of(folder: Path, processes: int, batch: int, weighting: str, fused: bool):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        start += ["--master_port", str(28_500 + os.getpid() % 1000)]
    done = subprocess.run(
        [*start, str(script), str(folder), str(batch), weighting, str(fused)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(folder / f"rank{rank}.safetensors") for rank in range(processes)]
    return ranks, json.loads((folder / "lines.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("weighting", ["fixed", "gradmag", "gradnorm", "pcgrad", "uncertainty"])
def test_two_processes_weigh_as_one(tmp_path, weighting, fused):
    (one,), lines = run_of(tmp_path / "one", 1, 4, weighting, fused)
    two, others = run_of(tmp_path / "two", 2, 2, weighting, fused)
    for name, value in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        assert (two[0][name] - value).abs().max() <= 2e-4 * value.abs().max(), name
    for line, other in zip(lines, others, strict=True):
        for name in (key for key in line if key.startswith(("loss", "weight/"))):
            assert other[name] == pytest.approx(line[name], rel=1e-4), name
