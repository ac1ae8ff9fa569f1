"""Move one real model to other tokenizers in many ways, and measure what each leaves of it.

SmolLM2-135M-Instruct gets a vocabulary of 8,000 tokens, the tokenizers of three other families, or
bytes, and is taught by what it was. Measured: the teacher divergence on chat, code and prose from
held-out prompts, on the way and at the end, and bits per byte on held-out real texts.

Every finished run is kept as a JSON file in the output folder, and not run again.

    CROSSTILL_DATA=... python benchmarks/transfer/run.py default sft alm --seeds 0 1 2
"""

import argparse
import json
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from inputs import Inputs, quick_divergence, real_bits
from runs import RUNS, Run
from settings import training
from transformers import PreTrainedModel, TrainerCallback

from crosstill import DistillConfig, DistillTrainer
from crosstill.cli.options import quiet_libraries
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.reword import Rewording
from crosstill.text.encode import text_encoder
from crosstill.transfer.enriched import enrich
from crosstill.transfer.export import export
from crosstill.transfer.tables import Tables, read_tables


def main() -> None:
    """Run what is asked for and is not there yet, and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", help=f"of: {' '.join(RUNS)}; or all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--keep", action="store_true", help="export the models to OUT/models")
    parser.add_argument("--out", type=Path, default=Path("runs/transfer"))
    arguments = parser.parse_args()
    quiet_libraries()
    names = list(RUNS) if arguments.runs == ["all"] else arguments.runs
    unknown = [name for name in names if name not in RUNS]
    if unknown:
        parser.error(f"no run is called {', '.join(unknown)}; known: {' '.join(RUNS)}")
    inputs = Inputs(arguments.out)
    for seed in arguments.seeds:
        for name in names:
            path = arguments.out / "results" / f"{name}-{seed}.json"
            if not path.exists():
                keep = arguments.out / "models" / path.stem if arguments.keep else None
                if keep is not None and keep.exists():
                    parser.error(f"{keep} exists: move it away, or run without --keep")
                folder = arguments.out / "trainer" / path.stem
                found = perform(RUNS[name], seed, inputs, folder, keep)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found, indent=1))
            print(line(path), flush=True)


def perform(run: Run, seed: int, inputs: Inputs, folder: Path, keep: Path | None) -> dict[str, Any]:
    """Make the start, train, measure, and keep the model if asked to."""
    # `wide` begins as `own`: only what is trained on has more kinds of text
    begun = run.target, run.initial, "real" if run.text == "real" else "own"
    model, made = inputs.start(*begun)
    tokenizer, samples = inputs.target(run.target), inputs.samples()
    before = inputs.start_divergence(*begun)
    if run.enriched:
        original = Tables(read_tables(inputs.model()).input.clone())
        model = enrich(model, original, inputs.tokenizer, tokenizer)
        before = quick_divergence(model, tokenizer, samples)
    facts = {"run": asdict(run), "seed": seed, "start": made, "divergence_before": before}
    curve = [{"tokens": 0, "seconds": 0.0, **before}]
    if run.objectives:
        started = time.monotonic()
        teacher = inputs.teacher()
        rows = training_rows(run, seed, teacher, inputs)
        trainer = make_trainer(run, seed, model, teacher, rows, inputs, folder)
        clock = Curve(
            trainer, run, started, lambda m: quick_divergence(m, tokenizer, samples), curve
        )
        trainer.add_callback(clock)
        trainer.train()
        facts["seconds"] = round(time.monotonic() - started - clock.measuring, 1)
        facts["threads"] = torch.get_num_threads()
        facts["steps"] = trainer.state.global_step
        facts["student_tokens"] = trainer.progress()["student_tokens"]
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        curve[-1].update(quick_divergence(model, tokenizer, samples))
        if keep:
            export(model.float(), tokenizer, keep, verify=False)
    after = curve[-1]
    averages = inputs.start_divergence(run.target, "fvt", begun[2])
    return {
        **facts,
        "curve": curve,
        "divergence": {k: v for k, v in after.items() if k not in ("tokens", "seconds")},
        "divergence_fvt": averages,
        "closed_from_start": 1.0 - after["mean"] / before["mean"],
        "closed_from_fvt": 1.0 - after["mean"] / averages["mean"],
        "bits_per_byte": real_bits(model, tokenizer),
    }


class Curve(TrainerCallback):
    """Measures the divergence a few times on the way; at the end it notes tokens and seconds."""

    def __init__(
        self, trainer: DistillTrainer, run: Run, started: float, measure: Any, curve: list
    ) -> None:
        self.trainer, self.measure, self.curve = trainer, measure, curve
        self.marks = [run.tokens * point / run.points for point in range(1, run.points)]
        self.started, self.measuring = started, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where a mark is reached."""
        tokens = self.trainer.progress()["student_tokens"]
        if state.global_step == state.max_steps or (self.marks and tokens >= self.marks[0]):
            self.marks = [mark for mark in self.marks if mark > tokens]
            begun = time.monotonic()
            # with its wrapper: taken off, training would go on in float32
            model: PreTrainedModel = self.trainer.accelerator.unwrap_model(self.trainer.model)
            seconds = round(begun - self.started - self.measuring, 1)
            last = state.global_step == state.max_steps
            found = {} if last else self.measure(model)
            self.curve.append({"tokens": tokens, "seconds": seconds, **found})
            self.measuring += time.monotonic() - begun


def training_rows(run: Run, seed: int, teacher: PreTrainedModel, inputs: Inputs) -> Dataset:
    """As many rows as the tokens of a run ask for, reworded if it says so."""
    rows = inputs.rows(run.text)
    random.Random(seed).shuffle(rows)
    tokenizer = inputs.target(run.target)
    found = Dataset.from_list(enough(rows, tokenizer, run))
    if run.reword:  # longer in the student's tokens than they were
        local = LocalTeacher(teacher, inputs.tokenizer)
        rewording = Rewording(local, text_encoder(tokenizer), run.reword, seed=seed)
        found = Dataset.from_list(enough(rewording.dataset(found).to_list(), tokenizer, run))
    return found


def make_trainer(
    run: Run,
    seed: int,
    model: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Dataset,
    inputs: Inputs,
    folder: Path,
) -> DistillTrainer:
    """The trainer of a run, which reads each row once."""
    return DistillTrainer(
        model,
        teacher,
        DistillConfig(
            output_dir=str(folder),
            objectives=json.loads(json.dumps(run.objectives)),
            weighting=run.weighting,
            max_steps=-(-len(rows) // run.rows_per_step),
            compile_blocks=True,
            **training(
                rows_per_step=run.rows_per_step,
                max_length=run.max_length,
                learning_rate=run.rate,
                embedding_rate=run.embedding_rate,
                seed=seed,
                beta2=run.beta2,
            ),
        ),
        train_dataset=rows,
        processing_class=inputs.target(run.target),
        teacher_processing_class=inputs.tokenizer,
    )


def enough(rows: list[dict[str, Any]], tokenizer: Any, run: Run) -> list[dict[str, Any]]:
    """Rows, again from the first where they run out, that make up the tokens of a run."""
    encoder, found, tokens = text_encoder(tokenizer), [], 0
    while tokens < run.tokens:
        for row in rows:
            text = row.get("text") or "".join(part["content"] for part in row["messages"])
            tokens += min(len(encoder.encode(text)) + 1, run.max_length)
            found.append({"text": row.get("text"), "messages": row.get("messages")})
            if tokens >= run.tokens:
                break
    return found


def line(path: Path) -> str:
    """What a run came to."""
    found = json.loads(path.read_text())
    after, real = found["divergence"], found["bits_per_byte"]
    kinds = " ".join(f"{kind} {after[kind]:.3f}" for kind in ("chat", "code", "prose"))
    return (
        f"{path.stem}: {found.get('student_tokens', 0):,.0f} tokens, {found.get('seconds', 0):.0f} "
        f"s; divergence {kinds}, mean {after['mean']:.3f}; closed {found['closed_from_fvt']:.1%} "
        f"from averages, {found['closed_from_start']:.1%} from the start; bits per byte "
        f"gsm8k {real['gsm8k']:.3f}, addresses {real['addresses']:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
