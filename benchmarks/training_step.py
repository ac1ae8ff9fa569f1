"""Measure what alignment and ALM's arithmetic cost in a whole training step of a real pair.

The parts are timed one after another on the same batch, in turn over several rounds; medians and
their shares of the step go to stdout as a markdown table and, with --out, to a JSON file.

    python benchmarks/training_step.py --out step.json

The pair is the demonstration's: SmolLM2-135M-Instruct, and the same network with 8,000 tokens.
"""

import argparse
import json
import platform
import pydoc_data.topics
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from crosstill import functional as F
from crosstill.align.rows import align_rendered
from crosstill.hub import load_model, load_tokenizer
from crosstill.teachers.signal import TokenSignal
from crosstill.text.render import render
from crosstill.training.config import DistillConfig
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer.embeddings import transplant

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from demo_parts.student import train_tokenizer
from demo_parts.teacher import cache_folder, teacher_from_package


def texts(count: int, characters: int) -> list[str]:
    """The first characters of as many long entries of Python's own documentation."""
    long = [text for text in pydoc_data.topics.topics.values() if len(text) >= characters]
    return [text[:characters] for text in long[:count]]


def make_trainer(options: argparse.Namespace, folder: str) -> DistillTrainer:
    """The trainer of the real pair, with everything at its default but the batch."""
    teacher_folder = teacher_from_package(cache_folder())
    source = load_tokenizer(teacher_folder)
    target = train_tokenizer(list(pydoc_data.topics.topics.values()), source, size=8_000)
    dtype = torch.bfloat16 if options.bf16 else torch.float32
    student = load_model(teacher_folder, dtype=torch.float32)
    transplant(student, source, target)
    config = DistillConfig(
        output_dir=folder,
        per_device_train_batch_size=options.rows,
        use_cpu=True,
        bf16=options.bf16,
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{"text": text} for text in texts(options.rows, options.characters)]
    teacher = load_model(teacher_folder, dtype=dtype)
    return DistillTrainer(
        student,
        teacher,
        config,
        train_dataset=rows,
        processing_class=target,
        teacher_processing_class=source,
    )


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alm_arithmetic(batch: dict[str, Tensor], signal: TokenSignal) -> None:
    """Everything ALM computes on [B, T] numbers, forward and backward."""
    shape = batch["student_input_ids"].shape
    student = torch.full(shape, -2.0, requires_grad=True)
    boundary = torch.full(shape, -0.7, requires_grad=True)
    loss = F.alm_loss(
        student,
        signal.logprob,
        batch["student_chunk"],
        batch["teacher_chunk"],
        student_boundary=boundary,
        teacher_boundary=signal.boundary,
        merge_threshold=0.1,
    )
    loss.mean().backward()


def measure(trainer: DistillTrainer, rounds: int) -> dict[str, list[float]]:
    """Time the parts of a step, in turn."""
    rows = [trainer.train_dataset[k] for k in range(len(trainer.train_dataset))]
    encoders = trainer.student_encoder, trainer.teacher_encoder
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(seconds(work))

    for _ in range(rounds + 1):
        rendered = [[render(row, encoder) for encoder in encoders] for row in rows]
        batch = trainer.data_collator(rows)
        signal = trainer.teacher(batch)
        counts = trainer.mix.counts(batch, signal)
        inputs = {"batch": batch, "signals": {"main": signal}, "counts": counts}
        note("alignment", lambda r=rendered: [align_rendered(*sides) for sides in r])
        note("ALM arithmetic", lambda b=batch, s=signal: alm_arithmetic(b, s))
        note("merging and counting", lambda b=batch, s=signal: trainer.mix.counts(b, s))
        note("render, tokenise, align, collate", lambda: trainer.data_collator(rows))
        note("teacher", lambda b=batch: trainer.teacher(b).logprob)  # made when asked for

        def student(i: dict = inputs) -> None:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, i)
            loss.backward()

        note("student, forward and backward", student)
        note("optimizer", optimizer.step)
        optimizer.zero_grad()
    return {name: values[1:] for name, values in times.items()}


STEP = ("render, tokenise, align, collate", "merging and counting", "teacher",
        "student, forward and backward", "optimizer")  # fmt: skip


def main() -> None:
    """Run everything and report it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--characters", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 teacher and autocast")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(make_trainer(options, folder), options.rounds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    step = sum(middle[name] for name in STEP)
    print(f"| part | median ms | share of the step ({step:.2f} s) |\n|---|---|---|")
    for name, value in middle.items():
        print(f"| {name} | {value * 1e3:.2f} | {value / step:.3%} |")
    ours = middle["alignment"] + middle["ALM arithmetic"]
    print(f"| alignment + ALM arithmetic | {ours * 1e3:.2f} | {ours / step:.3%} |")
    if options.out:
        machine = {"cpu": platform.processor(), "torch": torch.__version__,
                   "threads": torch.get_num_threads()}  # fmt: skip
        note = {"machine": machine, "settings": {k: str(v) for k, v in vars(options).items()},
                "seconds": times, "step": step, "share": ours / step}  # fmt: skip
        options.out.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
