"""What the map of nearest tokens costs, and the loss that uses it.

For llama3 and gemma3, each way, in one run, in processor time of one thread:

- ours: `VocabularyPair.mined()` from nothing, and again from the cache on disk, with all hashing;
- plain loop: for one teacher token after another the least edit distance over the student's
  vocabulary, as FuseLLM's script does it with `editdistance`, here with rapidfuzz's `distance` one
  pair at a time. Timed on sampled tokens without an exact match and extrapolated to all of them;
- brute force: the same queries in one call of rapidfuzz's `cdist`, extrapolated too.

The sampled queries also check that all three find the same token. Then `mined_loss`, forward and
backward, on random logits of both vocabularies' sizes.

    make tokenizers && python benchmarks/mined.py --out mined.json
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from transformers import PreTrainedTokenizerFast

from crosstill import functional as F
from crosstill.align.nearest import nearest
from crosstill.align.spellings import lowest_ids, pieces
from crosstill.align.vocab import VocabularyPair
from crosstill.cache import cache_folder
from crosstill.text.encode import TextEncoder, text_encoder

PAIRS = (("llama3", "gemma3"), ("gemma3", "llama3"))


@dataclass(frozen=True)
class MapResult:
    """One direction; seconds of one thread, extrapolated ones from `sampled` queries."""

    student: str
    teacher: str
    teacher_tokens: int
    exact: int
    missed: int
    without: int
    ours_s: float
    again_s: float
    loop_s_extrapolated: float
    cdist_s_extrapolated: float
    sampled: int
    agree: int


@dataclass(frozen=True)
class LossResult:
    """`mined_loss` on random logits; microseconds a row, forward and backward."""

    student: str
    teacher: str
    rows: int
    merge: str
    us_a_row: float
    softmax_us_a_row: float


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of this thread, and what came out."""
    start = time.thread_time()
    result = function()
    return time.thread_time() - start, result


def plain_loop(queries: Sequence[bytes], table: Mapping[bytes, int]) -> list[int]:
    """The nearest of all, one distance at a time; the first of several, by id."""
    texts = sorted(table, key=table.__getitem__)
    found = []
    for query in queries:
        best, least = texts[0], 1 << 30
        for text in texts:
            distance = Levenshtein.distance(query, text)
            if distance < least:
                best, least = text, distance
        found.append(table[best])
    return found


def brute_force(queries: Sequence[bytes], table: Mapping[bytes, int]) -> list[int]:
    """The same with a matrix of all distances of eight queries at a time."""
    texts = sorted(table, key=table.__getitem__)
    found = []
    for k in range(0, len(queries), 8):
        part = cdist(queries[k : k + 8], texts, scorer=Levenshtein.distance, dtype=np.uint16)
        found += [table[texts[c]] for c in part.argmin(axis=1)]
    return found


def measure_map(
    names: tuple[str, str], encoders: Mapping[str, TextEncoder], sampled: tuple[int, int]
) -> tuple[MapResult, np.ndarray]:
    """One direction, and the map."""
    student, teacher = (encoders[name] for name in names)
    ours, mined = timed(VocabularyPair(student, teacher).mined)
    again, second = timed(VocabularyPair(student, teacher).mined)
    assert np.array_equal(mined, second)
    table, spelled = lowest_ids(student), pieces(teacher.bytes)
    open_ = [v for v, data in enumerate(spelled) if data and data not in table]
    missed = list(dict.fromkeys(spelled[v] for v in open_))
    places = random.Random(0).sample(open_, sampled[1])
    queries = [spelled[v] for v in places]
    brute, found = timed(lambda: brute_force(queries, table))
    few = queries[: sampled[0]]
    loop, by_loop = timed(lambda: plain_loop(few, table))
    agree = sum(a == b for a, b in zip(found, mined[places].tolist(), strict=True))
    assert by_loop == found[: sampled[0]]
    return MapResult(
        *names,
        teacher_tokens=len(spelled),
        exact=sum(data in table for data in spelled if data),
        missed=len(open_),
        without=int((mined < 0).sum()),
        ours_s=ours,
        again_s=again,
        loop_s_extrapolated=loop / len(few) * len(missed),
        cdist_s_extrapolated=brute / len(queries) * len(missed),
        sampled=len(queries),
        agree=agree,
    ), mined


def measure_loss(
    names: tuple[str, str], sizes: tuple[int, int], token_map: np.ndarray, rows: int
) -> list[LossResult]:
    """The loss for every way to merge, beside a softmax of both sides and its gradient."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(rows, size, generator=generator) for size in sizes)
    student.requires_grad_()
    map_ = torch.from_numpy(token_map.copy())

    def plain() -> None:
        torch.autograd.grad(student.softmax(-1).square().sum() + teacher.softmax(-1).sum(), student)

    def loss(merge: str) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(
            F.mined_loss(student, teacher, map_, merge=merge).total, student
        )

    def us_a_row(function: Callable[[], Any]) -> float:
        function()
        return min(timed(function)[0] for _ in range(3)) / rows * 1e6

    softmax = us_a_row(plain)
    return [
        LossResult(*names, rows, merge, us_a_row(loss(merge)), softmax)
        for merge in ("sum", "max", "first")
    ]


def report(maps: list[MapResult], losses: list[LossResult]) -> str:
    """The results in markdown."""
    lines = [
        "| student <- teacher | teacher's tokens | exact / searched / none | ours s | again s | "
        "plain loop s (extrapolated) | cdist s (extrapolated) | loop / ours | equal |",
        "|" + "---|" * 9,
    ]
    lines += [
        f"| {r.student} <- {r.teacher} | {r.teacher_tokens:,} | {r.exact:,} / {r.missed:,} / "
        f"{r.without:,} | {r.ours_s:.1f} | {r.again_s:.3f} | {r.loop_s_extrapolated:,.0f} | "
        f"{r.cdist_s_extrapolated:,.0f} | {r.loop_s_extrapolated / r.ours_s:,.0f}x | "
        f"{r.agree} of {r.sampled} |"
        for r in maps
    ]
    lines += ["", "| student <- teacher | merge | loss µs a row | softmax of both µs a row |",
              "|" + "---|" * 4]  # fmt: skip
    lines += [
        f"| {r.student} <- {r.teacher} | {r.merge} | {r.us_a_row:,.0f} | "
        f"{r.softmax_us_a_row:,.0f} |"
        for r in losses
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs everything and reports it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizers", type=Path, default=cache_folder() / "tokenizers")
    parser.add_argument("--loop", type=int, default=12, help="queries for the plain loop")
    parser.add_argument("--brute", type=int, default=200, help="queries for brute force")
    parser.add_argument("--rows", type=int, default=128, help="rows of logits for the loss")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoders = {
        name: text_encoder(PreTrainedTokenizerFast.from_pretrained(options.tokenizers / name))
        for name in sorted({*sum(PAIRS, ())})
    }
    nearest([b"warm"], {b"up": 0})  # compiled now
    maps, losses = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CROSSTILL_CACHE"] = folder
        for names in PAIRS:
            result, token_map = measure_map(names, encoders, (options.loop, options.brute))
            maps.append(result)
            sizes = encoders[names[0]].vocab_size, encoders[names[1]].vocab_size
            losses += measure_loss(names, sizes, token_map, options.rows)
    print(report(maps, losses))
    if options.out:
        results = {"maps": [asdict(r) for r in maps], "losses": [asdict(r) for r in losses]}
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
