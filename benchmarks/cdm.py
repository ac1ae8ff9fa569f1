"""What CDM's own work costs: time warping, mapping, and a whole step, against plain Python.

One thread, one run, processor time of this thread, so that a busy machine is busy for all alike.

- Time warping at 128, 512 and 2,048 tokens of English: ours (`token_distances` and `dtw_path`, from
  lists of strings to the path) against the loops that the specification describes, written here:
  one distance at a time (rapidfuzz's, in C, as the peer's `editdistance` is), a table of Python
  floats, the path by `argmin` of three. Entropies are random; the paths must be equal.
- Mapping of the 100 likeliest tokens of both sides: ours against loops over ids, decoding one id at
  a time and measuring one distance at a time, both directions, as the specification describes the
  released code. On a real model's logits (`--teacher`: SmolLM2's for English text, its own
  vocabulary on one side; on the other the tokens of the student's tokenizer that spell the same
  or, where it has none, the first token of its spelling, likeliest first) and on 100 random
  tokens on either side.
- A step's own work for one sequence of 512 tokens at vocabularies of 152k and 128k: everything that
  `cdm` does once both models' logits are there, forward and backward to the student's logits.
- Exact top-100 by blocks against `torch.topk`.

    make tokenizers teacher && python benchmarks/cdm.py --out cdm.json
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from crosstill.align.candidates import CandidateMap
from crosstill.align.chunks import align_ids
from crosstill.align.dtw import dtw_path, entropy_weights, token_distances
from crosstill.align.spellings import pieces
from crosstill.align.symbols import byte_strings, character_strings
from crosstill.align.vocab import VocabularyPair
from crosstill.functional.topk import top_ids
from crosstill.objectives import ModelFacts, Pair, StudentScores, create
from crosstill.text.encode import TextEncoder, text_encoder

CACHE = Path(os.environ.get("CROSSTILL_CACHE") or Path.home() / ".cache" / "crosstill")
K, THETA = 100, 0.3
PARTS = ("time_warping", "mapping", "step", "top")
SPECIAL = {"</s>": "<|im_end|>", "<|endoftext|>": "<|endoftext|>"}
ENGLISH = (
    "It was late in the afternoon when the ferry, which had left the island two hours behind its "
    "timetable, finally came alongside the old stone quay; nobody was waiting there except a boy "
    "with a bicycle and {n} letters for the captain. He counted them twice, signed the receipt, "
    "and asked whether the storm of {y} had really taken the lighthouse roof. "
)


def encoder(name: str) -> TextEncoder:
    """The tokenizer that `make tokenizers` fetched."""
    path = CACHE / "tokenizers" / name / "tokenizer.json"
    if not path.is_file():
        raise SystemExit(f"expected {path}, found none: run `make tokenizers`")
    return text_encoder(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(path))))


def english(words: int) -> str:
    """Text of many different sentences: from CROSSTILL_DATA, else numbered repetitions."""
    data = os.environ.get("CROSSTILL_DATA")
    files = sorted((Path(data) / "state_union").glob("**/*.txt")) if data else []
    if files:
        text = " ".join(f.read_text(encoding="utf-8", errors="ignore") for f in files[:4])
        return " ".join(text.split()[:words])
    return "".join(ENGLISH.format(n=i, y=1700 + 7 * i) for i in range(words // 60 + 1))


def seconds(function: Callable[[], object], repeats: int) -> float:
    """The least processor time of this thread of some calls, after one to compile and warm up."""
    function()
    best = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        function()
        best = min(best, time.thread_time() - start)
    return best


def once(function: Callable[[], object]) -> tuple[float, object]:
    """Processor time of one call, and what it gave."""
    start = time.thread_time()
    found = function()
    return time.thread_time() - start, found


def plain_distance(a: str, b: str) -> int:
    """The distance as the specification describes it: special tokens free, spaces left out."""
    if (a in SPECIAL and b in SPECIAL.values()) or (b in SPECIAL and a in SPECIAL.values()):
        return 0
    return Levenshtein.distance(a.replace(" ", ""), b.replace(" ", ""))


def plain_path(teacher: list, student: list, one: np.ndarray, two: np.ndarray) -> list:
    """Time warping as the specification has it, in Python."""
    n, m = len(teacher), len(student)
    total = [[float("inf")] * (m + 1) for _ in range(n + 1)]
    total[0][0] = 0.0
    for i in range(n):
        for j in range(m):
            cost = plain_distance(teacher[i], student[j]) * one[i] * two[j]
            total[i + 1][j + 1] = cost + min(total[i][j + 1], total[i + 1][j], total[i][j])
    i, j, steps = n, m, [(n - 1, m - 1)]
    while i > 1 or j > 1:
        choices = [total[i - 1][j - 1], total[i - 1][j], total[i][j - 1]]
        move = choices.index(min(choices))
        i, j = i - (move != 2), j - (move != 1)
        steps.append((i - 1, j - 1))
    return steps[::-1]


def time_warping(names: tuple[str, str], lengths: list[int], repeats: int) -> list[dict]:
    """Ours against plain Python on English text."""
    sides = [encoder(name) for name in names]
    text = english(2500)
    strings = [byte_strings(pieces(side.bytes), drop_spaces=True) for side in sides]
    ids = [side.encode(text) for side in sides]
    rng, found = np.random.default_rng(0), []
    for length in lengths:
        student, teacher = (
            [table[id] for id in side[:length]] for table, side in zip(strings, ids, strict=True)
        )
        two, one = (entropy_weights(rng.gamma(2, 1.5, len(side))) for side in (student, teacher))
        ours = seconds(
            lambda t=teacher, s=student, a=one, b=two: dtw_path(token_distances(t, s), a, b),
            repeats,
        )
        peer, steps = once(lambda t=teacher, s=student, a=one, b=two: plain_path(t, s, a, b))
        path = dtw_path(token_distances(teacher, student), one, two)
        same = list(zip(path.teacher.tolist(), path.student.tolist(), strict=True)) == steps
        found.append(
            {"tokens": length, "ours_ms": ours * 1e3, "peer_ms": peer * 1e3, "ratio": peer / ours,
             "same_path": same}
        )  # fmt: skip
    return found


def plain_texts(
    tops: tuple[np.ndarray, np.ndarray], sides: tuple[TextEncoder, TextEncoder]
) -> list[list[str]]:
    """The tokens of one group, decoded one id at a time."""
    return [
        [side.tokenizer.decode([id]) for id in top.tolist()]
        for side, top in zip(sides, tops, strict=True)
    ]


def plain_map(
    tops: tuple[np.ndarray, np.ndarray], texts: list[list[str]], known: list[dict[int, int]]
) -> int:
    """One group, both directions, one distance at a time."""
    mapped = 0
    for own in (0, 1):
        for id, text in zip(tops[own].tolist(), texts[own], strict=True):
            if id in known[own]:
                mapped += 1
                continue
            best = THETA
            for other in texts[1 - own]:
                size = len(text) + len(other)
                delta = plain_distance(text, other) / size if size else 0.0
                if delta < best:
                    best = delta
            mapped += best < THETA
    return mapped


def real_tops(
    folder: Path, student: TextEncoder, pair: VocabularyPair, positions: int
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's top tokens on English, and the student's tokens they are spelled with."""
    teacher = text_encoder(PreTrainedTokenizerFast.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([teacher.encode(english(2 * positions))[:positions]])
    with torch.no_grad():
        logits = model(ids).logits[0, :, : len(teacher.bytes)]
    wide = top_ids(logits, 4 * K).numpy()
    offsets, spelled = pair.teacher_spelled()
    first = np.where(np.diff(offsets) > 0, spelled[np.minimum(offsets[:-1], len(spelled) - 1)], -1)
    other = []
    for row in first[wide]:
        _, at = np.unique(row, return_index=True)
        kept = row[np.sort(at)]
        other.append(kept[kept >= 0][:K])
    width = min(map(len, other))
    print(f"student's side: {width} tokens a position", file=sys.stderr)
    return np.stack([row[:width] for row in other]), wide[:, :K]


def mapping(folder: Path, student_name: str, positions: int, repeats: int) -> list[dict]:
    """Ours against loops over ids."""
    student = encoder(student_name)
    teacher = text_encoder(PreTrainedTokenizerFast.from_pretrained(folder))
    pair, sides = VocabularyPair(student, teacher), (student, teacher)
    shared = pair.shared()
    strings = [character_strings(pieces(side.bytes)) for side in sides]
    maps = CandidateMap(strings[0], strings[1], shared, THETA)
    known = [dict(shared.tolist()), {t: s for s, t in shared.tolist()}]
    rng = np.random.default_rng(0)
    random = tuple(
        np.stack([rng.permutation(len(side))[:K] for _ in range(positions)]) for side in strings
    )
    found = []
    for kind, tops in (("real", real_tops(folder, student, pair, positions)), ("random", random)):
        own, other = (np.ascontiguousarray(side) for side in tops)
        ours = seconds(lambda a=own, b=other: maps(a, b), repeats) / positions
        shown = min(20, positions)
        groups = [(own[g], other[g]) for g in range(shown)]
        decoding, texts = once(lambda g=groups: [plain_texts(tops, sides) for tops in g])
        loops, _ = once(
            lambda g=groups, x=texts: [plain_map(*one, known) for one in zip(g, x, strict=True)]
        )
        peer = decoding + loops
        free = 1 - maps(own, other).covered.mean() / K
        found.append(
            {"top": kind, "positions": positions, "ours_us": ours * 1e6,
             "peer_us": peer / shown * 1e6, "ratio": peer / shown / ours,
             "peer_loops_us": loops / shown * 1e6, "loops_ratio": loops / shown / ours,
             "without_a_pair": float(free)}
        )  # fmt: skip
    return found


class Given:
    """A teacher's signal whose logits are there."""

    def __init__(self, logits: torch.Tensor):
        self.logits = logits
        self.vocab_size = logits.shape[-1]

    def rows(self, row: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """A stretch of one sequence, without a copy: making the logits is the teacher's work."""
        assert len(position) == int(position[-1] - position[0]) + 1
        return self.logits[int(row[0]), int(position[0]) : int(position[-1]) + 1]


def step(names: tuple[str, str], tokens: int, repeats: int) -> list[dict]:
    """A step's own work, forward and backward."""
    student, teacher = (encoder(name) for name in names)
    text = english(tokens)
    ids = [side.encode(text)[: tokens + 1] for side in (student, teacher)]
    text = teacher.bytes.spell(ids[1]).decode("utf-8", "ignore")
    ids = [student.encode(text)[: tokens + 1], teacher.encode(text)[: tokens + 1]]
    common = min(
        len(side.bytes.spell(own)) for side, own in zip((student, teacher), ids, strict=True)
    )
    text = teacher.bytes.spell(ids[1])[:common].decode("utf-8", "ignore")
    ids = [student.encode(text), teacher.encode(text)]
    aligned = align_ids(text, *ids, student, teacher)
    sizes = 151_936, 128_256
    g = torch.Generator().manual_seed(0)
    logits, others = (
        3 * torch.randn(1, len(own), size, generator=g)
        for own, size in zip(ids, sizes, strict=True)
    )
    logits.requires_grad_()
    own, other = (torch.tensor(side).unsqueeze(0) for side in ids)
    batch = {
        "student_input_ids": own, "student_labels": own, "teacher_labels": other,
        "student_chunk": _chunks(aligned, 0, len(ids[0])),
        "teacher_chunk": _chunks(aligned, 1, len(ids[1])),
    }  # fmt: skip
    facts = [ModelFacts(size, 1, 1, torch.zeros(0, 1), None) for size in sizes]
    found = []
    for alignment in ("dtw", "bytes"):
        objective = create("cdm", alignment=alignment)
        objective.prepare(Pair(VocabularyPair(student, teacher), facts[0], facts[1]))
        times = {"forward_s": float("inf"), "backward_s": float("inf")}
        for _ in range(repeats + 1):
            forward, loss = once(
                lambda o=objective: o.loss(StudentScores(logits, batch), batch, Given(others))
            )
            backward, _ = once(loss.total.backward)
            logits.grad = None
            times = {"forward_s": min(times["forward_s"], forward),
                     "backward_s": min(times["backward_s"], backward)}  # fmt: skip
        report = {key: float(value / loss.count) for key, value in loss.sums.items()}
        found.append(
            {"alignment": alignment, "tokens": len(ids[0]), **times,
             "step_s": sum(times.values()), **report}
        )  # fmt: skip
    return found


def top(repeats: int) -> list[dict]:
    """Blocks against `torch.topk`."""
    found = []
    for size in (128_256, 262_144):
        rows = torch.randn(16, size, generator=torch.Generator().manual_seed(1))
        ours = seconds(lambda r=rows: top_ids(r, K), repeats) / 16
        peer = seconds(lambda r=rows: r.topk(K), repeats) / 16
        found.append(
            {"vocabulary": size, "ours_us": ours * 1e6, "peer_us": peer * 1e6, "ratio": peer / ours}
        )
    return found


def _chunks(aligned, side: int, length: int) -> torch.Tensor:
    chunk = torch.full((1, length), -1)
    for k, spans in enumerate(aligned.chunks):
        chunk[0, spans[side][0] : spans[side][1]] = k
    return chunk


def main() -> None:
    """Runs everything and reports it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--teacher", type=Path, help="folder of SmolLM2 (`make teacher`)")
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 512, 2048])
    parser.add_argument("--positions", type=int, default=256, help="groups that are mapped")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = options.teacher or CACHE / "SmolLM2-135M-Instruct"
    parts = {
        "time_warping": lambda: time_warping(("qwen3", "llama3"), options.lengths, options.repeats),
        "mapping": lambda: mapping(teacher, "llama2", options.positions, options.repeats),
        "step": lambda: step(("qwen3", "llama3"), 512, options.repeats),
        "top": lambda: top(options.repeats),
    }
    results = {name: parts[name]() for name in options.only}
    for name, lines in results.items():
        print(f"{name}:")
        for line in lines:
            cells = (
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()
            )
            print("  " + ", ".join(cells))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
