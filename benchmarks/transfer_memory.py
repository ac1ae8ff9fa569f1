"""Peak memory of teaching a model itself on a new tokenizer, against plain LoRA fine-tuning.

The student is a model (SmolLM2-135M-Instruct) on a byte-level BPE of 8,000 tokens; every step
has the same shape. "LoRA" is peft's adapter of rank 64 on all projections, cross entropy on the
model's own logits and AdamW, in a bare loop; the same with tables that train too, and with peft's
`modules_to_save` for them. "ours" is `DistillTrainer` with the teacher in memory.

Each case runs in a process of its own: a step to warm up, which also makes the optimizer's state,
then the peak over the next one. On a CPU it is the peak of the resident memory less what
was there after the imports, with large blocks of memory given back to the system as soon as they
are free; on a GPU `torch.cuda.max_memory_allocated`.

    CROSSTILL_DATA=data python benchmarks/transfer_memory.py
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from demo_parts import teacher as teacher_part
from demo_parts.student import train_tokenizer

from crosstill import DistillConfig, DistillTrainer
from crosstill.hub import load_model, load_tokenizer
from crosstill.transfer.embeddings import transplant
from crosstill.transfer.modes import LORA, prepare_mode, tables
from crosstill.transfer.self_teacher import self_teacher

MEBIBYTE = 2**20
WARM_UP, MEASURED = 1, 1
VOCABULARY = 8_000


def texts(count: int) -> list[str]:
    """Long texts: solved problems, several to a row."""
    folder = Path(os.environ["CROSSTILL_DATA"])
    lines = (folder / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    problems = [f"{row['question']}\n{row['answer']}" for row in rows]
    return ["\n\n".join(problems[i * 8 : i * 8 + 8]) for i in range(count)]


class Meter:
    """The peak of this process's memory, in MiB."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = 0.0 if device == "cuda" else self._resident("VmRSS")

    def reset(self) -> None:
        """Forgets the peak so far."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM

    def read(self) -> dict[str, float]:
        """The peak since `reset`, and on a CPU what the process has had before the model."""
        if self.device == "cuda":
            return {"peak": torch.cuda.max_memory_allocated() / MEBIBYTE, "imports": 0.0}
        peak = self._resident("VmHWM")
        return {"peak": peak - self.before, "imports": self.before}

    @staticmethod
    def _resident(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


class Peak(TrainerCallback):
    """Resets a meter after the warm-up."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Resets after the last step of the warm-up."""
        if state.global_step == WARM_UP:
            self.meter.reset()


def loaded(folder: str, device: str) -> PreTrainedModel:
    """The model in float32, in memory of its own rather than in that of its file."""
    model = load_model(folder, dtype="float32")
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model.to(device)  # type: ignore[arg-type]


def plain(kind: str, options: argparse.Namespace, meter: Meter) -> None:
    """A bare loop: forward, cross entropy, backward, AdamW."""
    source, target = load_tokenizer(options.model), load_tokenizer(options.target)
    model = loaded(options.model, options.device)
    if kind != "lora, own tokenizer":
        transplant(model, source, target)
    model.config.use_cache = False
    if options.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    student = _plain_student(kind, model).train()
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    ids = torch.randint(0, VOCABULARY, (options.rows, options.tokens), device=options.device)
    for step in range(WARM_UP + MEASURED):
        if step == WARM_UP:
            meter.reset()
        student(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _plain_student(kind: str, model: PreTrainedModel) -> Any:
    from peft import LoraConfig, get_peft_model

    if kind == "full":
        return model
    saved = {"modules_to_save": ["embed_tokens", "lm_head"]} if kind.endswith("saved") else {}
    student = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA, **saved))
    if kind == "lora, tables":
        for table in tables(model):
            table.requires_grad_(True)
    return student


def distilled(mode: str, objectives: str, options: argparse.Namespace, meter: Meter) -> None:
    """`DistillTrainer` in one of the modes."""
    source, target = load_tokenizer(options.model), load_tokenizer(options.target)
    model = loaded(options.model, options.device)
    teacher = self_teacher(model, source, [mode])
    transplant(model, source, target)
    steps = WARM_UP + MEASURED
    with tempfile.TemporaryDirectory() as folder:
        settings = DistillConfig(
            folder,
            objectives=objectives,
            per_device_train_batch_size=options.rows,
            max_length=options.tokens,
            pad_to_multiple_of=options.tokens,
            max_steps=steps,
            learning_rate=1e-5,
            gradient_checkpointing=options.checkpointing,
            bf16=False,
            use_cpu=options.device == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = DistillTrainer(
            prepare_mode(model, mode),
            teacher,
            settings,
            [{"text": text} for text in texts(steps * options.rows)],
            processing_class=target,
            callbacks=[Peak(meter)],
        )
        del model, teacher
        trainer.train()


CASES: dict[str, Callable[[argparse.Namespace, Meter], None]] = {
    "LoRA": lambda o, m: plain("lora", o, m),
    "LoRA, tables train": lambda o, m: plain("lora, tables", o, m),
    "LoRA, tables in modules_to_save": lambda o, m: plain("lora, saved", o, m),
    "LoRA, the model's own tokenizer": lambda o, m: plain("lora, own tokenizer", o, m),
    "ours, lora, prefix_kl": lambda o, m: distilled("lora", "prefix_kl", o, m),
    "ours, lora, alm": lambda o, m: distilled("lora", "alm", o, m),
    "ours, lora, prefix_kl+hidden": lambda o, m: distilled("lora", "prefix_kl+hidden", o, m),
    "ours, embeddings, prefix_kl": lambda o, m: distilled("embeddings", "prefix_kl", o, m),
    "full": lambda o, m: plain("full", o, m),
    "ours, full, prefix_kl": lambda o, m: distilled("full", "prefix_kl", o, m),
    "ours, full, alm": lambda o, m: distilled("full", "alm", o, m),
}


def main() -> None:
    """Runs every case, or the one that is named, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=teacher_part.cache_folder() / "SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, help="JSON file for machine, versions and numbers")
    parser.add_argument("--target", help=argparse.SUPPRESS)  # set for the process of one case
    options = parser.parse_args()
    if options.target:
        meter = Meter(options.device)
        CASES[options.cases[0]](options, meter)
        print(json.dumps(meter.read()))
        return
    with tempfile.TemporaryDirectory() as folder:
        target = train_tokenizer(texts(900), load_tokenizer(options.model), size=VOCABULARY)
        target.save_pretrained(folder)
        print(f"| case | peak MiB | x {options.cases[0]} |\n|---|---|---|")
        found: dict[str, dict[str, float]] = {}
        for case in options.cases:
            found[case] = _own_process(case, folder)
            share = found[case]["peak"] / found[options.cases[0]]["peak"]
            print(f"| {case} | {found[case]['peak']:.0f} | {share:.2f} |", flush=True)
    if options.out:
        facts = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "MiB": found,
        }
        options.out.write_text(json.dumps(facts | {"options": vars(options)}, default=str))


def _own_process(case: str, target: str) -> dict[str, float]:
    """Runs one case with the arguments of this process."""
    # freed blocks from 128 KiB on go back to the system: the peak is what was in use, not holes
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    command = [sys.executable, *sys.argv, "--cases", case, "--target", target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
