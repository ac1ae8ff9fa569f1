"""`crosstill`: the verbs, and how errors leave the process.

Exit codes: 0 done, 2 the user can fix it, 3 data, 4 numerics, 130 interrupted. An error that
crosstill raises on purpose is one clear line on stderr; `--debug` shows where it came from.
"""

import logging
import sys
import traceback
from typing import Annotated

import typer

from crosstill import __version__
from crosstill.cli.distill import distill
from crosstill.cli.doctor import doctor
from crosstill.cli.ensemble import ensemble
from crosstill.cli.evaluate import evaluate
from crosstill.cli.inspect import inspect
from crosstill.cli.methods import methods
from crosstill.cli.transfer import transfer
from crosstill.errors import CrosstillError

app = typer.Typer(
    name="crosstill",
    help="Teach one language model from another, whatever their tokenizers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# Unknown options of `distill`, `transfer` and `doctor` are keys of the recipe.
_RECIPE_KEYS = {"allow_extra_args": True, "ignore_unknown_options": True}
app.command(context_settings=_RECIPE_KEYS)(distill)
app.command(context_settings=_RECIPE_KEYS)(transfer)
app.command()(inspect)
app.command(context_settings=_RECIPE_KEYS)(doctor)
app.command()(evaluate)
app.command()(ensemble)
app.command()(methods)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crosstill {__version__}")
        raise typer.Exit()


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Teach one language model from another, whatever their tokenizers."""


def main() -> None:
    """Run the command line and leave with the exit code of what happened."""
    debug = "--debug" in sys.argv
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(message)s")
    try:
        app()
    except CrosstillError as error:
        _leave(error, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        _leave(error, "interrupted", 130)
    except MemoryError as error:
        _leave(error, _out_of_memory(error), 2)
    except OSError as error:
        # A full disk, a folder that may not be written: the system's words say what and where.
        _leave(error, str(error), 2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _leave(error, _out_of_memory(error), 2)


def _out_of_memory(error: BaseException) -> str:
    said = str(error).split("\n", 1)[0]
    return (
        f"out of memory{f' ({said})' if said else ''}. Lower the batch size of one micro-batch "
        f"(and raise gradient_accumulation_steps by as much, the result is the same), lower "
        f"max_length, or load the teacher in bfloat16."
    )


def _leave(error: BaseException, message: str, code: int) -> None:
    """End the process with a message on stderr, and with the traceback where it was asked for."""
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    sys.stderr.write(f"crosstill: {message}\n")
    sys.exit(code)
