"""report.html: one page about a run that needs nothing but itself."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from crosstill.errors import DataError
from crosstill.report import page


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` from the files of a run folder and return its path.

    Read are summary.json (needed), metrics.jsonl and alignment.html (both may be missing).
    Everything from the files is escaped, except the alignment, which crosstill itself wrote as
    escaped HTML. An earlier report.html is replaced whole or not at all.

    Raises:
        DataError: summary.json is missing or damaged.
    """
    run_dir = Path(run_dir)
    summary = _read_summary(run_dir / "summary.json")
    lines = _read_lines(run_dir / "metrics.jsonl")
    alignment = run_dir / "alignment.html"
    html = render(
        summary, lines, alignment.read_text(encoding="utf-8") if alignment.is_file() else ""
    )
    target, draft = run_dir / "report.html", run_dir / ".report.html.tmp"
    draft.write_text(html, encoding="utf-8")
    draft.replace(target)
    return target


def render(summary: dict[str, Any], lines: list[dict[str, Any]], alignment: str = "") -> str:
    """The page as a string. `alignment` is HTML and goes in as it is."""
    names = ("student", "teacher")
    page_html = (resources.files("crosstill.report") / "page.html").read_text(encoding="utf-8")
    content = {name: Path(str(summary.get(name, name))).name for name in names} | {
        "subtitle": _subtitle(summary),
        "gap": page.gap(summary),
        "facts": page.facts(summary),
        "kinds": page.kinds(
            summary.get("teacher_divergence_before_by_kind") or {},
            summary.get("teacher_divergence_after_by_kind") or {},
        ),
        "charts": page.charts([*lines, page.last_line(summary)]),
        "completions": page.completions(summary.get("completions") or []),
        "alignment": Markup(alignment),  # noqa: S704 - crosstill.align.view escapes it
        "coverage": page.counts(summary),
        "details": _details(summary),
        "files": "summary.json" + (", metrics.jsonl" if lines else ""),
    }
    return environment().from_string(page_html).render(page=content, style=style())


def environment() -> Environment:
    """How all pages are made: everything is escaped, and a forgotten value is an error."""
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def style() -> Markup:
    """The style of all pages, to go into a style element."""
    css = (resources.files("crosstill.report") / "style.css").read_text(encoding="utf-8")
    return Markup(css)  # noqa: S704 - our own file


def _subtitle(summary: dict[str, Any]) -> str:
    said = []
    if summary.get("objective"):
        said.append(f"Objective {summary['objective']}")
    if summary.get("steps") is not None:
        said.append(f"{summary['steps']:,} steps")
    if summary.get("seed") is not None:
        said.append(f"seed {summary['seed']}")
    return ", ".join(said)


def _details(summary: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [
        {"title": "Settings", "rows": page.flat(summary.get("recipe") or {})},
        {"title": "Versions", "rows": page.flat(summary.get("versions") or {})},
    ]
    return [group for group in groups if group["rows"]]


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing: a finished run writes it. Is {file.parent} the folder of a run?"
        ) from None
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(summary, dict):
        raise DataError(f"{file}: expected a JSON object, got {type(summary).__name__}")
    return summary


def _read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a killed run left half written is left out."""
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{file}, line {number}: not valid JSON: {error}") from error
    return found
