"""What alignment costs: against tokenising both sides, and against TRL's GOLD alignment.

For real texts of 512 and 2,048 student tokens, in one run, turn by turn, in processor time of one
thread, and of all turns the least, so that a busy machine counts as little as can be:

- tokenising: both tokenizers' own `encode`, the work that no method can avoid;
- ours: `align_ids`, from lists of ids to chunks, with every check;
- the rendered row: `align_rendered`, which training calls, with special tokens and supervision;
- the peer: TRL 1.16.0 in a virtual environment of its own, its byte offsets of both sides plus its
  `_align_by_byte_offsets`, tokenising left out.

    make tokenizers && python benchmarks/alignment.py --out alignment.json

The tokenizers are those that `make tokenizers` fetches; or `--tokenizers DIR` with a
`tokenizer.json` for each of llama3, qwen3 and gemma3, below a folder whose name contains that name.
Without `--peer-python` the peer is installed once into the cache folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from crosstill.align.chunks import align_ids
from crosstill.align.rows import align_rendered
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.text.render import render

PAIRS = (("llama3", "qwen3"), ("llama3", "gemma3"))
LENGTHS = (512, 2048)
BURST = 0.02  # seconds a measurement lasts, the same for all
PEER = "trl==1.16.0"
PEER_NEEDS = "torch==2.13.0"
CACHE = Path(os.environ.get("CROSSTILL_CACHE") or Path.home() / ".cache" / "crosstill")
WORKER = Path(__file__).with_name("alignment_peer.py")


@dataclass(frozen=True)
class Result:
    """One line of the table: of each text the least time of all turns, then medians over texts."""

    student: str
    teacher: str
    corpus: str
    tokens: int
    bytes: int
    tokenise_us: float
    ours_us: float
    rendered_us: float
    peer_us: float | None
    peer_walk_us: float | None
    ours_of_tokenising: float
    rendered_of_tokenising: float
    peer_over_ours: float | None
    peer_said: str


class Peer:
    """The peer in its own process and environment, asked for one measurement at a time."""

    def __init__(self, python: Path, worker: Path = WORKER):
        self.process = subprocess.Popen(
            [python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question: object) -> dict:
        """The worker's answer to one question."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def peer_python(given: Path | None) -> Path:
    """The interpreter that has the peer; made in the cache folder if none is given."""
    if given is not None:
        return given
    home = CACHE / PEER.replace("==", "-")
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"installing {PEER} into {home} ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        for package in (PEER_NEEDS, PEER):
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
        (home / "complete").touch()
    return python


def tokenizer_file(folder: Path, name: str) -> Path:
    """The `tokenizer.json` that lies below a folder named after the tokenizer."""
    for path in sorted(folder.glob("**/tokenizer.json")):
        if any(name in part for part in path.relative_to(folder).parts):
            return path
    raise SystemExit(f"expected a tokenizer.json below {folder}/*{name}*, found none")


def corpora() -> Iterator[tuple[str, str]]:
    """Names and texts: prose where CROSSTILL_DATA is set, code from the standard library."""
    data = os.environ.get("CROSSTILL_DATA")
    if data:
        files = sorted((Path(data) / "state_union").glob("**/*.txt"))[:6]
        yield "prose", "\n".join(f.read_text(encoding="utf-8", errors="ignore") for f in files)
        yield "Chinese", (Path(data) / "udhr" / "cmn_hans.txt").read_text(encoding="utf-8")
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ("argparse", "ast", "codecs", "dataclasses", "difflib", "enum", "inspect")
    yield "code", "\n".join((folder / f"{n}.py").read_text(encoding="utf-8") for n in names)


def samples(text: str, encoder: TextEncoder, tokens: int, count: int) -> list[str]:
    """Up to `count` stretches of the text of about so many tokens each, cut between lines."""
    found, lines, size = [], [], 0
    for line in text.splitlines(keepends=True):
        size += len(encoder.encode(line))
        lines.append(line)
        if size >= tokens:
            found.append("".join(lines))
            lines, size = [], 0
            if len(found) == count:
                break
    return found


def seconds(function: Callable[[], object]) -> float:
    """Mean time of this thread for one call in a burst; other processes do not count."""
    calls, start = 0, time.thread_time()
    while (spent := time.thread_time() - start) < BURST:
        for _ in range(5):
            function()
        calls += 5
    return spent / calls


def measure(
    names: tuple[str, str],
    files: tuple[Path, Path],
    encoders: tuple[TextEncoder, TextEncoder],
    corpus: tuple[str, list[str]],
    peer: Peer | None,
    rounds: int,
) -> Result:
    """All measurements of one pair on one corpus, turn by turn."""
    student, teacher = encoders
    backends = [encoder.tokenizer.backend_tokenizer for encoder in encoders]
    least: list[dict[str, float]] = [{} for _ in corpus[1]]
    said = ""
    for turn in range(rounds + 1):
        for text, best in zip(corpus[1], least, strict=True):
            ids = student.encode(text), teacher.encode(text)
            sides = [render({"text": text}, encoder) for encoder in encoders]
            times = {
                "tokenise": seconds(
                    lambda t=text: [b.encode(t, add_special_tokens=False).ids for b in backends]
                ),
                "ours": seconds(lambda t=text, i=ids: align_ids(t, *i, student, teacher)),
                "row": seconds(lambda s=sides: align_rendered(*s)),
            }
            if peer:
                asked = {"student": str(files[0]), "teacher": str(files[1]), "text": text}
                answer = peer.ask(**asked, burst=BURST)
                said = answer.pop("error", said)
                times |= answer
            if turn:  # compiled and warmed up by then
                best |= {key: min(time, best.get(key, time)) for key, time in times.items()}

    def middle(of: Callable[[dict[str, float]], float]) -> float:
        return statistics.median(of(best) for best in least)

    paired = all("seconds" in best for best in least)
    return Result(
        *names,
        corpus=corpus[0],
        tokens=round(statistics.mean(len(student.encode(text)) for text in corpus[1])),
        bytes=round(statistics.mean(len(text.encode()) for text in corpus[1])),
        tokenise_us=1e6 * middle(lambda best: best["tokenise"]),
        ours_us=1e6 * middle(lambda best: best["ours"]),
        rendered_us=1e6 * middle(lambda best: best["row"]),
        peer_us=1e6 * middle(lambda best: best["seconds"]) if paired else None,
        peer_walk_us=1e6 * middle(lambda best: best["walk_seconds"]) if paired else None,
        ours_of_tokenising=middle(lambda best: best["ours"] / best["tokenise"]),
        rendered_of_tokenising=middle(lambda best: best["row"] / best["tokenise"]),
        peer_over_ours=middle(lambda best: best["seconds"] / best["ours"]) if paired else None,
        peer_said=said,
    )


def table(results: list[Result]) -> str:
    """The results in markdown."""
    head = (
        "student → teacher | text | tokens | tokenising both µs | ours µs | ours / tokenising | "
        "rendered row µs | row / tokenising | TRL 1.16.0 µs | of it the walk µs | TRL / ours"
    )
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for r in results:
        peer = (
            f"{r.peer_us:,.0f} | {r.peer_walk_us:,.0f} | {r.peer_over_ours:,.0f}x"
            if r.peer_us is not None
            else f"{r.peer_said or 'not run'} | | "
        )
        lines.append(
            f"| {r.student} → {r.teacher} | {r.corpus} | {r.tokens} | {r.tokenise_us:,.0f} | "
            f"{r.ours_us:.1f} | {r.ours_of_tokenising:.2%} | {r.rendered_us:.1f} | "
            f"{r.rendered_of_tokenising:.2%} | {peer} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs everything and reports it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--tokenizers", type=Path, default=CACHE / "tokenizers", help="folder of tokenizer.json"
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter that has " + PEER)
    parser.add_argument("--no-peer", action="store_true", help="measure ours only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--texts", type=int, default=4, help="texts a corpus")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    options = parser.parse_args()
    peer = None if options.no_peer else Peer(peer_python(options.peer_python))
    files = {name: tokenizer_file(options.tokenizers, name) for name in sorted({*sum(PAIRS, ())})}
    encoders = {
        name: text_encoder(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_file(str(file))))
        for name, file in files.items()
    }
    results = []
    for corpus, text in corpora():
        for tokens in LENGTHS:
            for pair in PAIRS:
                sides = encoders[pair[0]], encoders[pair[1]]
                texts = samples(text, sides[0], tokens, options.texts)
                if not texts:
                    continue
                paths = files[pair[0]], files[pair[1]]
                results.append(measure(pair, paths, sides, (corpus, texts), peer, options.rounds))
    if peer:
        peer.close()
    print(table(results))
    if options.out:
        options.out.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
