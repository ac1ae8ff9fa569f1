"""Options that several verbs share, and recipe keys given as flags."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from crosstill.errors import ConfigError
from crosstill.plain_json import finite

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run the Python files of a model you have read. Never set by a file.",
    ),
]

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


RecipeFile = Annotated[Path, typer.Argument(help="A YAML recipe; recipes/ has commented ones.")]


def recipe_overrides(args: Sequence[str]) -> dict[str, Any]:
    """Read `--key value`, `--key=value` and `--key` (true) into recipe keys.

    Dashes in a key are underscores and a dot goes one level down; values are YAML. Whether a key
    exists is the recipe's to say.

    Raises:
        ConfigError: a value without a key, a key given twice, or a value that is not YAML.

    >>> recipe_overrides(["--learning-rate", "1e-4", "--training.bf16", "--seed=3"])
    {'learning_rate': 0.0001, 'training.bf16': True, 'seed': 3}
    """
    overrides: dict[str, Any] = {}
    waiting = list(args)
    while waiting:
        flag = waiting.pop(0)
        if not re.fullmatch(r"--[A-Za-z][\w.-]*(=.*)?", flag, re.DOTALL):
            raise ConfigError(f"expected a recipe key such as --seed, got {flag!r}")
        key, equals, value = flag[2:].partition("=")
        key = key.replace("-", "_")
        if key in overrides:
            raise ConfigError(f"--{key} is given twice; give it once")
        if not equals and (not waiting or waiting[0].startswith("--")):
            overrides[key] = True
        else:
            overrides[key] = _value(key, value if equals else waiting.pop(0))
    return overrides


def _value(key: str, text: str) -> Any:
    # YAML 1.1 takes 1e-4 for a word; everyone who types it means a number.
    if _NUMBER.fullmatch(text) and not text.lstrip("+-").isdigit():
        return float(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key} {text!r} is not a YAML value; put it in quotes") from error


def quiet_libraries() -> None:
    """Leave the terminal to us: no bars and no advice from transformers and datasets."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def print_json(value: Any) -> None:
    """Write one JSON value on stdout; text stays readable, NaN becomes null."""
    json.dump(finite(value), sys.stdout, ensure_ascii=False, indent=2, allow_nan=False)
    sys.stdout.write("\n")


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    title: str = "",
    numbers: bool = False,
) -> None:
    """Write a table on stdout, as wide as the terminal allows; long cells are folded.

    With `numbers`, all columns but the first are set flush right.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        *columns,
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(columns),
    )
    for column in table.columns:
        column.overflow = "fold"
    for column in table.columns[1:] if numbers else ():
        column.justify = "right"
    for row in rows:
        # Text, not str: a file name or a token with [brackets] is not markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    Console().print(table)
