"""Measure the fused ALM head against the plain one: peak memory and time.

Each variant runs in a process of its own for its peak memory; for the time all variants run in
turn in one process, and the median of the rounds counts. The processors' time is given beside the
clock's: on a busy machine only the former says much. Results go to stdout as a markdown table and,
with --out, to a JSON file that names machine and versions.

    python benchmarks/alm_head.py --tokens 2048 --vocab 131072 --hidden 576 --out head.json
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from crosstill import functional as F

MEBIBYTE = 2**20


def make_inputs(tokens: int, vocab: int, hidden: int) -> dict[str, Tensor]:
    """Random states, a random matrix, and chunks of one to three tokens on each side."""
    g = torch.Generator().manual_seed(0)

    def chunks() -> Tensor:
        sizes = torch.randint(1, 4, (tokens,), generator=g)
        index = torch.repeat_interleave(torch.arange(tokens), sizes)[: tokens - 1]
        return torch.cat([torch.tensor([-1]), index]).unsqueeze(0)

    return {
        "hidden": torch.randn(1, tokens, hidden, generator=g).requires_grad_(),
        "weight": torch.randn(vocab, hidden, generator=g).mul_(hidden**-0.5).requires_grad_(),
        "ids": torch.randint(0, vocab, (1, tokens), generator=g),
        "student_chunk": chunks(),
        "teacher_chunk": chunks(),
        "teacher_logprob": torch.rand(1, tokens, generator=g).log() * 4,
        "teacher_boundary": torch.rand(1, tokens, generator=g).log(),
        "mask": torch.rand(vocab, generator=g) < 0.45,
    }


def naive_scores(x: dict[str, Tensor], debias: bool) -> tuple[Tensor, Tensor | None]:
    """What one writes first: log-softmax of all logits, then gather."""
    everything = torch.log_softmax(x["hidden"] @ x["weight"].t(), -1)
    chosen = everything[:, :-1].gather(-1, x["ids"][:, 1:, None]).squeeze(-1)
    logprob = torch.nn.functional.pad(chosen, (1, 0))
    if not debias:
        return logprob, None
    return logprob, torch.logsumexp(everything.masked_fill(~x["mask"], -math.inf), -1)


def naive(x: dict[str, Tensor], *, alm: bool, sft: bool, debias: bool = True) -> Tensor:
    """The loss on whole logits."""
    logprob, boundary = naive_scores(x, alm and debias)
    total = logprob.new_zeros(())
    if alm:
        loss = F.alm_loss(
            logprob,
            x["teacher_logprob"],
            x["student_chunk"],
            x["teacher_chunk"],
            student_boundary=boundary,
            teacher_boundary=x["teacher_boundary"],
            merge_threshold=0.1,
        )
        total = total + loss.mean()
    if sft:
        total = total + F.sft_loss(logprob, x["ids"]).mean()
    return total


def fused(
    x: dict[str, Tensor], *, alm: bool, sft: bool, debias: bool = True, block: int | None = None
) -> Tensor:
    """The same loss from hidden states."""
    terms: list[F.ChunkTerm | F.LabelTerm] = []
    if alm:
        teacher = F.teacher_chunks(
            x["teacher_logprob"],
            x["student_chunk"],
            x["teacher_chunk"],
            x["teacher_boundary"],
            merge_threshold=0.1,
            debias=debias,
        )
        terms.append(F.ChunkTerm(teacher, 1 / teacher.counted.sum().float(), debias=debias))
    if sft:
        terms.append(F.LabelTerm(x["ids"], torch.tensor(1 / (x["ids"].shape[1] - 1))))
    head = F.HeadMatrix(x["weight"])
    return F.fused_head(
        x["hidden"], head, x["ids"], *terms, boundary_mask=x["mask"], block=block
    ).total


def bare_products(x: dict[str, Tensor]) -> Tensor:
    """The three matrix products alone, in blocks: the floor of the time."""
    weight, states = x["weight"].detach(), x["hidden"].detach()[0]
    total, back = torch.zeros_like(weight), torch.empty_like(states)
    for start in range(0, len(states), 256):
        part = states[start : start + 256]
        logits = part @ weight.t()
        back[start : start + 256] = logits @ weight
        total.addmm_(logits.t(), part)
    return total


VARIANTS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "three bare products": bare_products,
    "SFT, plain": lambda x: naive(x, alm=False, sft=True),
    "SFT, fused": lambda x: fused(x, alm=False, sft=True),
    "ALM without boundary, plain": lambda x: naive(x, alm=True, sft=False, debias=False),
    "ALM without boundary, fused": lambda x: fused(x, alm=True, sft=False, debias=False),
    "ALM, plain": lambda x: naive(x, alm=True, sft=False),
    "ALM, fused": lambda x: fused(x, alm=True, sft=False),
    "ALM, fused, blocks of 64": lambda x: fused(x, alm=True, sft=False, block=64),
    "ALM+SFT, plain": lambda x: naive(x, alm=True, sft=True),
    "ALM+SFT, fused": lambda x: fused(x, alm=True, sft=True),
}


def step(name: str, x: dict[str, Tensor]) -> tuple[float, float]:
    """Run a variant forward and backward; return seconds of the clock and of the processors."""
    x["hidden"].grad = x["weight"].grad = None
    start = time.perf_counter(), time.process_time()
    total = VARIANTS[name](x)
    if total.requires_grad:
        total.backward()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def status_bytes(key: str) -> int:
    """Read a size from /proc/self/status (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{key} is not in /proc/self/status; this benchmark needs Linux")


def measure_memory(name: str, x: dict[str, Tensor]) -> dict[str, float]:
    """Measure the peak of one step above its inputs, in this process."""
    small = make_inputs(64, 512, 16)
    step(name, small)  # loads libraries and starts threads
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here
    step(name, x)
    peak = status_bytes("VmHWM") - before
    gradient = x["weight"].numel() * 4
    return {"peak_mib": peak / MEBIBYTE, "beyond_gradient_mib": (peak - gradient) / MEBIBYTE}


def in_own_process(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Run `measure_memory` in a fresh process."""
    shape = [f"--{key}={getattr(arguments, key)}" for key in ("tokens", "vocab", "hidden")]
    command = [sys.executable, __file__, *shape, f"--threads={arguments.threads}"]
    done = subprocess.run([*command, "--only", name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_times(
    names: list[str], x: dict[str, Tensor], rounds: int
) -> dict[str, dict[str, float | list[float]]]:
    """Run all variants in turn, several rounds, and take medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(step(name, x))
            clock, processors = found[name][-1]
            print(f"  {name}: {clock:.2f} s ({processors:.2f} s of processors)", file=sys.stderr)
    return {
        name: {
            "seconds": statistics.median(clock for clock, _ in times),
            "cpu_seconds": statistics.median(processors for _, processors in times),
            "all_seconds": [clock for clock, _ in times],
        }
        for name, times in found.items()
    }


def table(results: dict[str, dict], shape: str) -> str:
    """Write the results as markdown."""
    lines = [
        f"{shape}, float32, {torch.get_num_threads()} threads; peak above the inputs",
        "",
        "| variant | peak MiB | beyond the weight gradient | median s | CPU s | against plain |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        base = results.get(name.split(", fused")[0] + ", plain", found)
        ratio = found["seconds"] / base["seconds"]
        cpu = found["cpu_seconds"] / base["cpu_seconds"]
        share = base["beyond_gradient_mib"] / max(found["beyond_gradient_mib"], 1e-9)
        against = (
            "" if base is found else f"{ratio:.2f}x time ({cpu:.2f}x CPU), 1/{share:.1f} memory"
        )
        lines.append(
            f"| {name} | {found['peak_mib']:.0f} | {found['beyond_gradient_mib']:.0f} "
            f"| {found['seconds']:.2f} | {found['cpu_seconds']:.2f} | {against} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--only", help="measure the memory of one variant in this process")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    inputs = make_inputs(arguments.tokens, arguments.vocab, arguments.hidden)
    if arguments.only:
        print(json.dumps(measure_memory(arguments.only, inputs)))
        return
    memory = {}
    for name in arguments.variants:
        memory[name] = in_own_process(arguments, name)
        print(f"  {name}: {memory[name]['peak_mib']:.0f} MiB", file=sys.stderr)
    times = measure_times(arguments.variants, inputs, arguments.rounds)
    results = {name: {**memory[name], **times[name]} for name in arguments.variants}
    shape = f"T={arguments.tokens}, V={arguments.vocab}, D={arguments.hidden}"
    print(table(results, shape))
    if arguments.out:
        about = {
            "shape": shape,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
        arguments.out.write_text(json.dumps({"about": about, "results": results}, indent=1))


if __name__ == "__main__":
    main()
