"""`crosstill methods`: the objectives that exist."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from crosstill.cli.options import Debug, Json, print_json
from crosstill.errors import ConfigError

if TYPE_CHECKING:
    from crosstill.objectives import MethodInfo

Names = Annotated[
    list[str] | None, typer.Argument(help="Show these alone, with what each option does.")
]


def methods(names: Names = None, as_json: Json = False, debug: Debug = False) -> None:
    """List the objectives: paper, needs, cost, when to choose them, options."""
    from crosstill.objectives import methods as list_methods

    found = _named(list_methods(), names or [])
    if as_json:
        print_json([asdict(method) for method in found])
        return
    across = [method for method in found if not method.one_vocabulary]
    alike = [method for method in found if method.one_vocabulary]
    _print_group("For any two tokenizers", across, explained=bool(names))
    _print_group("For two models with one tokenizer", alike, explained=bool(names))
    if not names:
        typer.echo("crosstill methods NAME says what each option does; --json prints everything.")


def _named(found: Sequence[MethodInfo], names: Sequence[str]) -> list[MethodInfo]:
    known = {method.name: method for method in found}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"there is no method called {name!r}; {hint}known: {', '.join(known)}"
            )
    return [known[name] for name in dict.fromkeys(names)] if names else list(found)


def _print_group(title: str, found: Sequence[MethodInfo], *, explained: bool) -> None:
    """Print one block for each method; all blocks have the same two columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not found:
        return
    blocks = [(method, _lines(method, explained=explained)) for method in found]
    table = Table.grid(padding=(0, 2))
    labels = [label for method, lines in blocks for label, _ in [(method.name, ""), *lines]]
    table.add_column(width=max(len(label) for label in labels))
    table.add_column(overflow="fold")
    for method, lines in blocks:
        table.add_row(Text(method.name, style="bold"), Text(method.paper))
        for label, text in lines:
            table.add_row(Text(label), Text(text))
        table.add_row("", "")
    console = Console()
    console.print(Text(title, style="bold underline"), Text(""), table, sep="\n")


def _lines(method: MethodInfo, *, explained: bool) -> list[tuple[str, str]]:
    needs = ", ".join(need.replace("_", " ") for need in method.needs) or "nothing of a teacher"
    lines = [("  choose", method.choose), ("  needs", needs), ("  cost", method.cost)]
    if explained:
        return lines + [(f"  {one.name} = {one.default}", one.help) for one in method.options]
    options = ", ".join(f"{one.name}={one.default}" for one in method.options)
    return [*lines, ("  options", options or "none")]
