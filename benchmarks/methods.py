"""What each method makes of the same student, the same texts and the same number of tokens.

The student of `make demo` (SmolLM2-135M-Instruct with a vocabulary of 8,000 tokens) is trained by
each method on texts that its teacher wrote, and measured before and after: teacher divergence on
texts that the teacher wrote from other prompts, and bits per byte on held-out prose. Rows, their
order, the teacher's texts and the start are the same for all methods of a seed.

Every finished run is kept as a JSON file in the output folder, and not run again.

    python benchmarks/methods.py --methods prefix_kl alm --rows 368 --seeds 0 1 --out runs/methods

With `--same-vocabulary` the student is the teacher without its last ten blocks, so that methods for
one vocabulary can be tried.
"""

import argparse
import copy
import json
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from demo import (
    HELD_OUT_PROMPTS,
    HELD_OUT_TEXTS,
    OTHER_PROMPTS,
    VOCABULARY,
    fast_bfloat16,
)
from demo_parts import prose as prose_part
from demo_parts import teacher as teacher_part
from demo_parts.student import train_tokenizer
from demo_parts.writing import let_teacher_write, openings, write_rows
from settings import training

from crosstill import DistillConfig, DistillTrainer
from crosstill.cli.options import quiet_libraries
from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher
from crosstill.evaluation.samples import Samples
from crosstill.hub import load_model, load_tokenizer
from crosstill.objectives import methods
from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.reword import Rewording
from crosstill.text.encode import text_encoder
from crosstill.training.measuring import Measured, measured
from crosstill.transfer.embeddings import transplant

SAME_BLOCKS = 20
"""Of the teacher's 30 blocks, where the student keeps its vocabulary."""


@dataclass(frozen=True)
class Inputs:
    """What all runs share.

    Attributes:
        teacher: where the teacher is.
        teacher_tokenizer: its tokenizer.
        tokenizer: the student's.
        rows: texts that the teacher wrote, to train on.
        held_out: real texts, to measure on.
        samples: texts that the teacher wrote from other prompts, to measure on.
        blocks: how many blocks of the teacher the student has; None: all, and other embeddings.
    """

    teacher: str
    teacher_tokenizer: PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast
    rows: list[str]
    held_out: list[str]
    samples: Samples
    blocks: int | None = None

    def student(self, rows: list[str] | None = None) -> PreTrainedModel:
        """A new student, as it starts: its embeddings from averages, or fitted to rows."""
        model = load_model(self.teacher, dtype="float32")
        if self.blocks is not None:
            model.model.layers = model.model.layers[: self.blocks]
            model.config.num_hidden_layers = self.blocks
        elif rows is None:
            transplant(model, self.teacher_tokenizer, self.tokenizer)
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
                transplant(model, self.teacher_tokenizer, self.tokenizer, initial="fit", texts=rows)
        return model


def main() -> None:
    """Run what is asked for and is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--methods", nargs="+", default=["all"], help="names, joined by + for a mix"
    )
    parser.add_argument("--rows", type=int, default=48, help="texts to train on, about 130 tokens")
    parser.add_argument("--rows-per-step", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: {method: {option}}")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--embedding-rate", type=float, help="of the embeddings; the same if unset")
    parser.add_argument(
        "--fit", action="store_true", help="fit the new embeddings to the rows that are trained on"
    )
    parser.add_argument(
        "--reword", type=float, default=0.0, help="share of words that the teacher replaces first"
    )
    parser.add_argument("--compile-blocks", action="store_true", help="half the time")
    parser.add_argument("--quick", action="store_true", help="measure on fewer texts")
    parser.add_argument("--same-vocabulary", action="store_true", help="for methods that need it")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    arguments = parser.parse_args()
    quiet_libraries()
    names = arguments.methods
    same = arguments.same_vocabulary
    if names == ["all"]:
        names = [method.name for method in methods() if method.one_vocabulary == same]
    inputs = prepare(arguments.out, arguments.rows, quick=arguments.quick)
    if arguments.reword:
        inputs = replace(inputs, rows=reworded(inputs, arguments.reword, arguments.out))
    if same:
        inputs = replace(inputs, tokenizer=inputs.teacher_tokenizer, blocks=SAME_BLOCKS)
    kind = ("-quick" if arguments.quick else "") + ("-same" if same else "")
    fitted = ("-fit" if arguments.fit else "") + (
        f"-reword-{arguments.reword:g}" if arguments.reword else ""
    )
    start = once(arguments.out / f"start{kind}.json", lambda: look(inputs.student(), inputs))
    teacher = once(arguments.out / f"teacher{kind}.json", lambda: teacher_bits(inputs))
    start["teacher_bits_per_byte"] = teacher["bits_per_byte"]
    for seed in arguments.seeds:
        for name in names:
            rate = arguments.embedding_rate or arguments.learning_rate
            of = f"{arguments.rows}-{arguments.rows_per_step}-{arguments.learning_rate:g}-{rate:g}"
            file = f"{name}-{of}-{seed}{'-same' if same else ''}{fitted}.json"
            run = once(arguments.out / file, lambda n=name, s=seed: train(n, s, inputs, arguments))
            print(line(run, start), flush=True)


def once(path: Path, make: Any) -> dict[str, Any]:
    """Read a result, or make and keep it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = make()
        path.write_text(json.dumps(result, indent=1))
    return json.loads(path.read_text())


def prepare(folder: Path, count: int, *, quick: bool) -> Inputs:
    """Let the teacher write, once, and read what it wrote."""
    teacher = str(teacher_part.teacher_from_package(teacher_part.cache_folder()))
    teacher_tokenizer = load_tokenizer(teacher)
    prose, encoder = prose_part.read_prose(), text_encoder(teacher_tokenizer)
    tokenizer_folder = folder / "tokenizer"
    if not tokenizer_folder.exists():
        tokenizer = train_tokenizer(prose.training, teacher_tokenizer, size=VOCABULARY)
        tokenizer.save_pretrained(tokenizer_folder)
    written = folder / "train.jsonl"
    if not written.exists() or len(written.read_text().splitlines()) < count:
        model = load_model(teacher, dtype="bfloat16" if fast_bfloat16() else "float32")
        prompts = openings(prose.training, encoder, count, seed=0)
        texts = let_teacher_write(
            model, encoder, prompts, seconds=float("inf"), seed=0, on_rows=lambda rows: None
        )
        write_rows(written, texts)
    prompts = {
        "documentation": openings(prose.held_out, encoder, HELD_OUT_PROMPTS, seed=0),
        **OTHER_PROMPTS,
    }
    if quick:
        prompts = {"documentation": prompts["documentation"][:24]}
    samples = sample_teacher(
        load_model(teacher, dtype="bfloat16" if fast_bfloat16() else "float32"),
        encoder,
        prompts,
        max_new_tokens=64,
        samples_per_prompt=1,
        seed=0,
        path=folder / f"samples{'-quick' if quick else ''}.jsonl",
    )
    return Inputs(
        teacher,
        teacher_tokenizer,
        load_tokenizer(str(tokenizer_folder)),
        [json.loads(row)["text"] for row in written.read_text().splitlines()],
        prose.held_out[: 16 if quick else HELD_OUT_TEXTS],
        samples,
    )


def reworded(inputs: Inputs, share: float, folder: Path) -> list[str]:
    """The rows with words put in that the student must spell, made once."""
    path = folder / f"train-reword-{share:g}.jsonl"
    if not path.exists():
        model = load_model(inputs.teacher, dtype="bfloat16" if fast_bfloat16() else "float32")
        local = LocalTeacher(model, inputs.teacher_tokenizer)
        rewording = Rewording(local, text_encoder(inputs.tokenizer), share)
        rows = rewording.dataset(Dataset.from_dict({"text": inputs.rows}))
        write_rows(path, list(rows["text"]))
    return [json.loads(row)["text"] for row in path.read_text().splitlines()]


def look(student: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """Measure a student."""
    found: Measured = measured(
        student.eval(), text_encoder(inputs.tokenizer), inputs.held_out, inputs.samples
    )
    return dict(vars(found))


def teacher_bits(inputs: Inputs) -> dict[str, Any]:
    """Measure the teacher on the held-out prose."""
    model = load_model(inputs.teacher, dtype="float32").eval()
    encoder = text_encoder(inputs.teacher_tokenizer)
    return {"bits_per_byte": bits_per_byte(model, encoder, inputs.held_out)}


def train(name: str, seed: int, inputs: Inputs, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train a new student by one method, and measure it."""
    rows = list(inputs.rows)
    random.Random(seed).shuffle(rows)
    rows = rows[: arguments.rows]
    objectives = {one: dict(arguments.options.get(one, {})) for one in name.split("+")}
    trainer = DistillTrainer(
        inputs.student(rows if arguments.fit else None),
        load_model(inputs.teacher, dtype="bfloat16" if fast_bfloat16() else "float32"),
        DistillConfig(
            output_dir=str(arguments.out / "trainer" / f"{name}-{arguments.rows}-{seed}"),
            objectives=copy.deepcopy(objectives),
            num_train_epochs=1,
            compile_blocks=arguments.compile_blocks,
            **training(
                rows_per_step=arguments.rows_per_step,
                max_length=192,
                learning_rate=arguments.learning_rate,
                embedding_rate=arguments.embedding_rate,
                seed=seed,
            ),
        ),
        train_dataset=Dataset.from_dict({"text": rows}),
        processing_class=inputs.tokenizer,
        teacher_processing_class=inputs.teacher_tokenizer,
    )
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    found = look(trainer.accelerator.unwrap_model(trainer.model), inputs)
    progress = trainer.progress()
    return {
        "method": name,
        "options": arguments.options,
        "fit": arguments.fit,
        "reword": arguments.reword,
        "seed": seed,
        "learning_rate": arguments.learning_rate,
        "embedding_rate": arguments.embedding_rate,
        "rows_per_step": arguments.rows_per_step,
        "steps": trainer.state.global_step,
        "student_tokens": progress["student_tokens"],
        "seconds": round(seconds, 1),
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "threads": torch.get_num_threads(),
        **found,
    }


def line(run: dict[str, Any], start: dict[str, Any]) -> str:
    """A row of the table."""
    closed = 1 - run["divergence"] / start["divergence"]
    return (
        f"| `{run['method']}` | {run['seed']} | {run['student_tokens']:,.0f} | "
        f"{start['divergence']:.3f} | {run['divergence']:.3f} | {closed:.1%} | "
        f"{start['bits_per_byte']:.3f} | {run['bits_per_byte']:.3f} | "
        f"{start['teacher_bits_per_byte']:.3f} | {run['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
