"""`crosstill inspect`: how two tokenizers meet on a text."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crosstill.cli.options import Debug, Json, print_json, print_table
from crosstill.errors import ConfigError

if TYPE_CHECKING:
    from crosstill.report.inspection import Inspection


def inspect(
    student: Annotated[str, typer.Argument(help="A folder, a tokenizer.json or a hub name.")],
    teacher: Annotated[str, typer.Argument(help="The same, of the teacher.")],
    text: Annotated[
        Path | None, typer.Option(help="A file of text or rows; without one, a sample of scripts.")
    ] = None,
    string: Annotated[str | None, typer.Option(help="A text, instead of a file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page to this file.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the page if it exists.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show how two tokenizers meet: alignment, coverage, overlap."""
    from crosstill.hub import load_tokenizer
    from crosstill.report.inspection import inspect_pair, read_texts, write_inspection

    if text is not None and string is not None:
        raise ConfigError("--text and --string exclude each other: give one")
    if html is not None and html.exists() and not overwrite:
        raise ConfigError(f"{html} exists: name another file, or pass --overwrite")
    texts = [string] if string is not None else read_texts(text)
    found = inspect_pair(load_tokenizer(student), load_tokenizer(teacher), texts)
    names = (student, teacher)
    if html is not None:
        write_inspection(html, found, names)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found, names)


def _as_json(found: "Inspection") -> dict:
    alignment = found.alignment
    return {
        "alignment": {
            "student_ids": alignment.student_ids,
            "teacher_ids": alignment.teacher_ids,
            "chunks": alignment.chunks,
            "rewritten": alignment.rewritten,
            "coverage": asdict(alignment.coverage),
        },
        "coverage": asdict(found.coverage),
        "vocabulary": asdict(found.vocabulary),
    }


def _show(found: "Inspection", names: tuple[str, str]) -> None:
    from rich.console import Console

    from crosstill.align.view import terminal
    from crosstill.report.inspection import short_name

    console = Console()
    console.print(terminal(found.alignment, (short_name(names[0]), short_name(names[1]))))
    coverage, vocabulary = found.coverage, found.vocabulary
    columns = ("", "bytes", "aligned", "1 to 1", "B/chunk", "B/token", "teacher B/token")
    for title, groups in (("By script", coverage.scripts), ("By category", coverage.categories)):
        rows = [
            (
                group.name,
                f"{group.bytes:,}",
                f"{group.aligned:.1%}",
                f"{group.one_to_one:.1%}",
                f"{group.bytes_per_chunk:.1f}",
                f"{group.student_bytes_per_token:.1f}",
                f"{group.teacher_bytes_per_token:.1f}",
            )
            for group in groups
        ]
        print_table(columns, rows, title=title, numbers=True)
    console.print(
        f"\n{coverage.aligned.bytes:.1%} of {coverage.bytes:,} bytes are aligned, in "
        f"{coverage.chunks:,} chunks. {coverage.advice}",
        highlight=False,
    )
    console.print(
        f"{vocabulary.shared:,} tokens spell the same bytes: {vocabulary.student_share:.0%} of the "
        f"student's {vocabulary.student:,}, {vocabulary.teacher_share:.0%} of the teacher's "
        f"{vocabulary.teacher:,}. {vocabulary.advice}",
        highlight=False,
    )
