"""Write the results of finished runs into the documentation: tables, curves, and raw numbers.

    python benchmarks/transfer/page.py runs/transfer --again runs/second

Rewrites what stands between the markers of docs/results/transfer.md, and the files beside it. What
the model writes depends on the machine: runs on texts drawn again stand in tables of their own.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from markupsafe import escape
from runs import RUNS

from crosstill.report.chart import ticks

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "results" / "transfer.md"
KINDS = ("chat", "code", "prose")
COLOURS = ("#4051b5", "#c2410c", "#0f766e", "#a21caf", "#854d0e", "#475569", "#be123c", "#15803d")
SHOWN = ("default", "default-fit", "prefix_kl-fvt", "alm", "sft", "alm+sft", "mined", "uld")

Results = Mapping[str, list[dict[str, Any]]]


def main() -> None:
    """Read the results, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--again", type=Path, help="a folder with runs on texts drawn again")
    options = parser.parse_args()
    results = read(options.folder / "results")
    again = read(options.again / "results") if options.again else {}
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in {
        "methods": methods(results),
        "methods again": methods(again),
        "tried": tried(results),
        "starts": starts(results),
        "starts again": starts(again),
        "targets": targets(results),
        "targets again": targets(again),
    }.items():
        text = between(text, name, lines)
    PAGE.write_text(text, encoding="utf-8")
    raw = json.dumps({"first": results, "again": again}, indent=1)
    PAGE.with_suffix(".json").write_text(raw + "\n", encoding="utf-8")
    for against, label in (("tokens", "student tokens"), ("seconds", "seconds of training")):
        drawn = curves(results, against, label)
        (DOCS / "assets" / f"transfer_{against}.svg").write_text(drawn + "\n", encoding="utf-8")


def read(folder: Path) -> Results:
    """The results by name of the run, in the order of `RUNS`, each in the order of its seeds."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        found[path.stem.rpartition("-")[0]].append(json.loads(path.read_text()))
    return {name: found[name] for name in RUNS if name in found}


def between(text: str, name: str, lines: Iterable[str]) -> str:
    """The page with these lines between the markers of that name."""
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = "\n".join(lines)
    pattern = re.escape(marks[0]) + ".*?" + re.escape(marks[1])
    return re.sub(
        pattern, lambda _: f"{marks[0]}\n{whole}\n{marks[1]}", text, count=1, flags=re.DOTALL
    )


def methods(results: Results) -> list[str]:
    """The runs on the vocabulary of 8,000 tokens, best first."""
    chosen = {
        name: runs
        for name, runs in results.items()
        if RUNS[name].target == "bpe8k" and RUNS[name].objectives and not is_tried(name)
    }
    rows = sorted(chosen.items(), key=lambda item: averaged(item[1], "mean"))
    return [*HEAD, *(row(name, runs) for name, runs in rows)]


def tried(results: Results) -> list[str]:
    """Changes of the default recipe, on fewer tokens."""
    return [*HEAD, *(row(name, runs) for name, runs in results.items() if is_tried(name))]


def is_tried(name: str) -> bool:
    """Whether a run looks for a better default."""
    return name.startswith("tried-")


def targets(results: Results) -> list[str]:
    """The runs on other tokenizers."""
    chosen = [
        (name, runs)
        for name, runs in results.items()
        if RUNS[name].target != "bpe8k" and RUNS[name].objectives
    ]
    return [*HEAD, *(row(name, runs) for name, runs in chosen)]


HEAD = (
    "| run | seeds | tokens | minutes | chat | code | prose | mean | closed | gsm8k | addresses "
    "| UDHR |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """A line of the table of trained models."""
    kinds = " | ".join(f"{averaged(runs, kind):.3f}" for kind in KINDS)
    closed = mean(one["closed_from_fvt"] for one in runs)
    means = [one["divergence"]["mean"] for one in runs]
    spread = f" ± {stdev(means):.3f}" if len(runs) > 1 else ""
    real = [mean(one["bits_per_byte"][text] for one in runs) for text in ("gsm8k", "addresses")]
    languages = mean(languages_of(one) for one in runs)
    return (
        f"| `{name}` | {len(runs)} | {mean(one['student_tokens'] for one in runs):,.0f} | "
        f"{mean(one['seconds'] for one in runs) / 60:.0f} | {kinds} | {mean(means):.3f}{spread} | "
        f"**{closed:.1%}** | {real[0]:.3f} | {real[1]:.3f} | {languages:.2f} |"
    )


def starts(results: Results) -> list[str]:
    """The models before any training."""
    chosen = [(RUNS[n].target, n, runs[0]) for n, runs in results.items() if n.startswith("start-")]
    lines = [
        "| target | initialiser | seconds | chat | code | prose | mean | below averages | gsm8k |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for target, name, one in chosen:
        kinds = " | ".join(f"{one['divergence'][kind]:.3f}" for kind in KINDS)
        lines.append(
            f"| {target} | `{name.rpartition('-')[2]}` | {one['start']['processor_seconds']:.0f} | "
            f"{kinds} | {one['divergence']['mean']:.3f} | {one['closed_from_fvt']:.1%} | "
            f"{one['bits_per_byte']['gsm8k']:.3f} |"
        )
    return lines


def averaged(runs: list[dict[str, Any]], key: str) -> float:
    """The mean over seeds of one of the divergences."""
    return mean(one["divergence"][key] for one in runs)


def languages_of(run: dict[str, Any]) -> float:
    """The mean over languages of bits per byte on the declaration."""
    return mean(v for name, v in run["bits_per_byte"].items() if name.startswith("udhr/"))


def curves(results: Results, against: str, label: str) -> str:
    """Draw the mean divergence over training, one line a run of the first seed, as SVG."""
    lines = {
        name: [(point[against], point["mean"]) for point in results[name][0]["curve"]]
        for name in SHOWN
        if name in results
    }
    width, height, left, bottom = 640, 320, 50, 40
    xs = [x for points in lines.values() for x, _ in points] or [0, 1]
    ys = [y for points in lines.values() for _, y in points] or [0, 1]
    across, up = ticks(0, max(xs)), ticks(0, max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / across[-1] * (width - left - 150),
            height - bottom - y / up[-1] * (height - bottom - 15),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" fill="#777">'
    ]
    for y in up:
        (x1, at), (x2, _) = place(0, y), place(across[-1], y)
        parts.append(f'<path d="M{x1:.0f} {at:.1f}H{x2:.0f}" stroke="#8884"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in across:
        at, _ = place(x, 0)
        parts.append(f'<text x="{at:.1f}" y="{height - 24}" text-anchor="middle">{x:,.0f}</text>')
    parts.append(f'<text x="{left}" y="{height - 6}">{escape(label)}; bits per byte</text>')
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number]
        spots = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        parts.append(
            f'<polyline points="{spots}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{width - 140}" y="{24 + 18 * number}" fill="{colour}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


if __name__ == "__main__":
    main()
