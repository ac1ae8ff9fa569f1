"""Measure what prefix KL costs in a training step, for a teacher of 128,256 tokens.

The teacher is SmolLM2-135M's body under Llama-3's tokenizer, with random embeddings (what they hold
does not matter for time); the student is that of the demonstration, 8,000 tokens. In turn over
several rounds: a whole step with `alm`, one with `prefix_kl`, and of the latter its own work
apart: the plan, the cumulative sums, the targets, and the loss with its gradient by the logits.
Both models' passes and the products of both heads are what `alm` needs too.

    make tokenizers teacher && python benchmarks/prefix_kl.py --out prefix_kl.json
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from training_step import cache_folder, load_model, load_tokenizer, seconds, teacher_from_package
from training_step import texts as documentation
from transformers import PreTrainedTokenizerFast

from crosstill.objectives.prefix_kl import PrefixKl
from crosstill.training.config import DistillConfig
from crosstill.training.trainer import DistillTrainer
from crosstill.transfer.embeddings import transplant

CACHE = Path(os.environ.get("CROSSTILL_CACHE") or Path.home() / ".cache" / "crosstill")


def make_trainer(objective: str, options: argparse.Namespace, folder: str) -> DistillTrainer:
    """A trainer of one objective."""
    from demo_parts.student import train_tokenizer

    teacher_folder = teacher_from_package(cache_folder())
    source = load_tokenizer(teacher_folder)
    target = train_tokenizer(documentation(10_000, 1), source, size=8_000)
    student = load_model(teacher_folder, dtype=torch.float32)
    transplant(student, source, target)
    file = next((options.tokenizers / "llama3").rglob("tokenizer*.json"))
    wide = PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|end_of_text|>")  # noqa: S106
    teacher = load_model(teacher_folder, dtype=torch.float32)
    teacher.resize_token_embeddings(len(wide), mean_resizing=False)
    return DistillTrainer(
        student,
        teacher,
        DistillConfig(
            output_dir=f"{folder}/{objective}",
            objectives=objective,
            per_device_train_batch_size=options.rows,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[{"text": text} for text in documentation(options.rows, options.characters)],
        processing_class=target,
        teacher_processing_class=wide,
    )


def step(trainer: DistillTrainer, optimizer: torch.optim.Optimizer) -> None:
    """A whole training step."""
    rows = [trainer.train_dataset[k] for k in range(len(trainer.train_dataset))]
    samples, _ = trainer.get_batch_samples(
        iter([trainer.data_collator(rows)]), 1, torch.device("cpu")
    )
    trainer.compute_loss(trainer.model, samples[0]).backward()
    optimizer.step()
    optimizer.zero_grad()


def own_work(trainer: DistillTrainer) -> Callable[[], None]:
    """What prefix KL adds to the models' passes and the heads' products."""
    rows = [trainer.train_dataset[k] for k in range(len(trainer.train_dataset))]
    batch = trainer.data_collator(rows)
    signal = trainer.teacher(batch)
    objective = trainer.mix.objectives["prefix_kl"][0]
    assert isinstance(objective, PrefixKl)
    width = trainer.mix.vocab_size
    blocks = objective.plan(batch).blocks(128)
    teacher = {block.teacher: signal.rows(*block.teacher) for block in blocks}
    student = {block.student: torch.randn(len(block.student[0]), width) for block in blocks}

    class Known:
        """A signal whose logits are there already."""

        def rows(self, *rows: torch.Tensor) -> torch.Tensor:
            return teacher[rows]

    def work() -> None:
        objective.plan(batch)
        for block in blocks:
            logits = student[block.student].requires_grad_()
            loss = objective.block_loss(logits, block, Known())
            torch.autograd.grad(loss.total, logits)

    return work


def main() -> None:
    """Run everything and report it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--characters", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizers", type=Path, default=CACHE / "tokenizers")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(name, options, folder) for name in ("alm", "prefix_kl")}
        optimizers = {
            name: torch.optim.AdamW(trainer.model.parameters(), lr=1e-5, fused=True)
            for name, trainer in trainers.items()
        }
        work = own_work(trainers["prefix_kl"])
        for turn in range(options.rounds + 1):
            for name, trainer in trainers.items():
                took = seconds(lambda t=trainer, o=optimizers[name]: step(t, o))
                times.setdefault(f"step with {name}", []).append(took)
            times.setdefault("prefix_kl's own work", []).append(seconds(work))
            if turn == 0:  # compiles and fills caches
                times.clear()
    middle = {name: statistics.median(values) for name, values in times.items()}
    whole = middle["step with prefix_kl"]
    print(f"| teacher of 128,256 tokens, {options.rows} rows | median s | share |\n|---|---|---|")
    for name, value in middle.items():
        print(f"| {name} | {value:.3f} | {value / whole:.1%} |")
    if options.out:
        note = {
            "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
            "seconds": times,
            "share": middle["prefix_kl's own work"] / whole,
        }
        options.out.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
