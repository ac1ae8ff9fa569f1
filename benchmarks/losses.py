"""What losses over whole vocabularies cost: exact ULD against sorting, GOLD against TRL 1.16.0.

One thread, processor time, turn by turn:

- ULD: forward and backward of `functional.uld_loss` on rows of logits, against the same in torch
  with `torch.sort` of both sides; values and gradients are compared.
- GOLD: the `gold` objective in TRL's form (merge observed, tail trl) against TRL's own loss in an
  environment of its own, on equal inputs; values and gradients are compared. Then the default
  form, and lengths from 256 to 2,048 tokens for the growth.

    python benchmarks/losses.py --out losses.json

Without `--peer-python` the peer is installed once into the cache folder.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from alignment import Peer, peer_python
from gold_inputs import Side, inputs, shared

from crosstill.functional.uld import uld_loss
from crosstill.objectives import Mix, create
from crosstill.objectives.base import PairBatch

ULD_SIZES = ((128_000, 152_000), (152_000, 128_000), (262_000, 128_000))
GOLD_SIZES = (128_000, 152_000)
LENGTHS = (256, 512, 1024, 2048)
WORKER = Path(__file__).with_name("gold_peer.py")
STRIDE = 997  # every so many columns of the gradient are compared


@dataclass(frozen=True)
class UldResult:
    """Milliseconds a row, forward and backward; medians."""

    student: int
    teacher: int
    near: bool
    ours_ms: float
    sort_ms: float
    sort_over_ours: float
    worst_value: float
    worst_gradient: float


@dataclass(frozen=True)
class GoldResult:
    """Seconds a sequence."""

    tokens: int
    form: str
    forward: float
    backward: float
    peer_forward: float | None = None
    peer_backward: float | None = None
    peer_over_ours: float | None = None
    value_gap: float | None = None
    gradient_gap: float | None = None


def by_sorting(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """ULD as it is published: softmax, torch.sort, zero padding, L1."""
    p = student.softmax(-1).sort(-1, descending=True).values
    q = teacher.softmax(-1).sort(-1, descending=True).values
    width = max(p.shape[1], q.shape[1])
    p, q = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (p, q))
    return (p - q).abs().sum()


def timed(function: Callable[[], torch.Tensor], leaf: torch.Tensor) -> tuple[float, float, float]:
    """(value, seconds of forward, seconds of backward) of this thread; the gradient is kept."""
    leaf.grad = None
    start = time.thread_time()
    value = function()
    middle = time.thread_time()
    value.backward()
    end = time.thread_time()
    return value.item(), middle - start, end - middle


def measure_uld(sizes: tuple[int, int], rows: int, rounds: int, *, near: bool) -> UldResult:
    """Both ways on the same rows; `near`: the teacher is the student with a little noise."""
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(rows, sizes[0], generator=generator)
    teacher = 3 * torch.randn(rows, sizes[1], generator=generator)
    if near:
        teacher = student + 0.01 * teacher
    student.requires_grad_()
    ours, peer, gaps = [], [], []
    for turn in range(rounds + 1):
        value, *spent = timed(lambda: uld_loss(student, teacher).total, student)
        gradient = student.grad
        expected, *peer_spent = timed(lambda: by_sorting(student, teacher), student)
        assert gradient is not None
        assert student.grad is not None
        gap = (gradient - student.grad).abs().max() / student.grad.abs().max()
        gaps.append((abs(value / expected - 1), gap.item()))
        if turn:  # compiled and warmed up now
            ours.append(sum(spent))
            peer.append(sum(peer_spent))
    ratios = [b / a for a, b in zip(ours, peer, strict=True)]
    return UldResult(
        *sizes,
        near=near,
        ours_ms=statistics.median(ours) / rows * 1e3,
        sort_ms=statistics.median(peer) / rows * 1e3,
        sort_over_ours=statistics.median(ratios),
        worst_value=max(gap[0] for gap in gaps),
        worst_gradient=max(gap[1] for gap in gaps),
    )


class Rows:
    """A teacher that gives rows of these logits."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def rows(self, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The rows."""
        return self.logits[row, position]


class Facts:
    """As much of a pair as `gold` asks for."""

    def __init__(self, sizes: tuple[int, int]):
        self.vocabulary = self
        self.student, self.teacher = (_Size(size) for size in sizes)
        self.pairs = np.array(shared(list(sizes)), np.int64)

    def shared(self) -> np.ndarray:
        """The shared tokens."""
        return self.pairs


@dataclass(frozen=True)
class _Size:
    vocab_size: int


def batch_of(student: Side, teacher: Side) -> PairBatch:
    """The batch as the collator would give it."""
    return {
        f"{name}_{key}": value
        for name, side in (("student", student), ("teacher", teacher))
        for key, value in (("input_ids", side.ids), ("labels", side.labels), ("chunk", side.chunk))
    }


def gold_mix(sizes: tuple[int, int], **options: object) -> Mix:
    """The objective alone, prepared."""
    objective = create("gold", **options)
    objective.prepare(Facts(sizes))  # type: ignore[arg-type]
    return Mix({"gold": (objective, 1.0)})


def one_step(mix: Mix, tokens: int, sizes: tuple[int, int]) -> tuple:
    """(value, seconds of forward, of backward, some columns of the gradient) of one sequence."""
    student, teacher = inputs(tokens, list(sizes), seed=tokens)
    batch, signal = batch_of(student, teacher), Rows(teacher.logits)
    leaf = student.logits.requires_grad_()

    def step() -> torch.Tensor:
        return mix.from_logits(leaf, batch, signal, mix.counts(batch, signal)).total  # type: ignore[arg-type]

    value, forward, backward = timed(step, leaf)
    assert leaf.grad is not None
    return value, forward, backward, leaf.grad[0, :, ::STRIDE].numpy().copy()


def measure_gold(
    mix: Mix, form: str, tokens: int, sizes: tuple[int, int], peer: Peer | None, hybrid: bool
) -> GoldResult:
    """One sequence, and the peer on the same one."""
    value, forward, backward, ours = one_step(mix, tokens, sizes)
    if peer is None:
        return GoldResult(tokens, form, forward, backward)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gradient.npy"
        answer = peer.ask(
            tokens=tokens,
            sizes=list(sizes),
            seed=tokens,
            hybrid=hybrid,
            stride=STRIDE,
            gradient=str(file),
        )
        theirs = np.load(file)
    return GoldResult(
        tokens,
        form,
        forward,
        backward,
        answer["forward"],
        answer["backward"],
        (answer["forward"] + answer["backward"]) / (forward + backward),
        abs(value / answer["value"] - 1),
        float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
    )


def run_gold(peer: Peer | None, peer_tokens: int, lengths: list[int]) -> list[GoldResult]:
    """TRL's form against TRL, then the default form at every length."""
    results = []
    for hybrid in (True, False):
        mix = gold_mix(GOLD_SIZES, merge="observed", tail="trl", hybrid=hybrid)
        form = "TRL's, hybrid" if hybrid else "TRL's, by rank"
        measure_gold(mix, form, 8, GOLD_SIZES, None, hybrid)  # compiled and warmed up now
        # The peer's time grows with the square of the tokens: the second form is measured shorter.
        tokens = peer_tokens if hybrid else peer_tokens // 4
        results.append(measure_gold(mix, form, tokens, GOLD_SIZES, peer, hybrid))
    mix = gold_mix(GOLD_SIZES)
    results += [measure_gold(mix, "default", n, GOLD_SIZES, None, True) for n in lengths]
    return results


def uld_table(results: list[UldResult]) -> str:
    """ULD in markdown."""
    lines = [
        "| Vs | Vt | rows | ours ms/row | torch.sort ms/row | ratio | value off | gradient off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        kind = "nearly equal" if r.near else "random"
        lines.append(
            f"| {r.student:,} | {r.teacher:,} | {kind} | {r.ours_ms:.2f} | {r.sort_ms:.1f} | "
            f"{r.sort_over_ours:.1f}x | {r.worst_value:.1e} | {r.worst_gradient:.1e} |"
        )
    return "\n".join(lines)


def gold_table(results: list[GoldResult]) -> str:
    """GOLD in markdown."""
    lines = [
        "| form | tokens | forward s | backward s | ms/token | TRL forward s | TRL backward s | "
        "ratio | value off | gradient off |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        peer = (
            f"{r.peer_forward:.1f} | {r.peer_backward:.1f} | {r.peer_over_ours:.0f}x | "
            f"{r.value_gap:.1e} | {r.gradient_gap:.1e}"
            if r.peer_over_ours is not None
            else " | | | | "
        )
        each = (r.forward + r.backward) / r.tokens * 1e3
        lines.append(
            f"| {r.form} | {r.tokens} | {r.forward:.2f} | {r.backward:.2f} | {each:.1f} | {peer} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything and reports it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer-python", type=Path, help="interpreter that has trl==1.16.0")
    parser.add_argument("--no-peer", action="store_true", help="measure ours only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16, help="rows of logits for ULD")
    parser.add_argument("--peer-tokens", type=int, default=512)
    parser.add_argument("--lengths", type=int, nargs="*", default=LENGTHS)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    uld = [measure_uld(sizes, options.rows, options.rounds, near=False) for sizes in ULD_SIZES]
    uld.append(measure_uld((128_000, 128_000), options.rows, options.rounds, near=True))
    print(uld_table(uld), flush=True)
    peer = None if options.no_peer else Peer(peer_python(options.peer_python), WORKER)
    gold = run_gold(peer, options.peer_tokens, options.lengths)
    if peer:
        peer.close()
    print(gold_table(gold))
    if options.out:
        found = {"uld": [asdict(r) for r in uld], "gold": [asdict(r) for r in gold]}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
