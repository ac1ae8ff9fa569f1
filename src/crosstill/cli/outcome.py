"""What a person is told when a run has ended."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crosstill.cli.options import print_table


def print_outcome(
    summary: dict[str, Any],
    folder: Path,
    first: Iterable[tuple[str, str]] = (),
    *,
    teacher: str = "the teacher",
    model: str = "the student",
) -> None:
    """Prints the headline numbers of a run, and where its files are.

    Args:
        summary: Of the run.
        folder: Its output folder.
        first: Rows to stand above the others.
        teacher: What the teacher is called.
        model: What the model is called that was written.
    """
    from crosstill.report.page import facts, gap

    rows = list(first)
    if gap(summary):
        rows.append((f"of the gap to {teacher} closed", gap(summary)))
    rows += [
        (fact.label, f"{fact.before} -> {fact.value}" if fact.before else fact.value)
        for fact in facts(summary)
    ]
    rows += [(model, str(folder / "model")), ("the report", str(folder / "report.html"))]
    print_table(("", ""), rows)
