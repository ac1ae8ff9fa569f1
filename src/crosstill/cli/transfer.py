"""`crosstill transfer`: move a model to another tokenizer, or to bytes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crosstill.cli.options import (
    Debug,
    Json,
    TrustRemoteCode,
    print_json,
    quiet_libraries,
    recipe_overrides,
)
from crosstill.cli.outcome import print_outcome
from crosstill.errors import ConfigError

if TYPE_CHECKING:
    from crosstill.transfer.recipe import TransferRecipe


def transfer(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="A model folder or hub name, or a recipe (.yaml, .yml).")
    ],
    to: Annotated[
        str | None,
        typer.Option(help="The tokenizer: a folder, a tokenizer.json, a hub name, or: bytes."),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(help="Training rows; once a file. Without any, nothing is trained."),
    ] = None,
    output_dir: Annotated[
        str | None, typer.Option(help="New or empty; else runs/MODEL_to_TOKENIZER.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="What is trained: full, lora, body or embeddings.")
    ] = None,
    initial: Annotated[
        str | None, typer.Option(help="How the embeddings begin: a name, or {name: {option: 1}}.")
    ] = None,
    special_tokens: Annotated[
        str | None, typer.Option(help="keep the model's own, or change to the tokenizer's.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in the output folder stopped.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew; the old output folder is renamed.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Move a model to another tokenizer, or to bytes.

    Makes first embeddings from the old ones, then lets the model as it was teach itself. Writes a
    plain model folder with its tokenizer and a card, metrics.jsonl, summary.json and report.html.

    MODEL is a model, and flags say the rest, or a recipe. Every key of a recipe is a flag as well:
    --max-steps 500 --learning-rate 1e-4 --eval-texts held_out.txt --prompts.chat prompts.jsonl
    """
    from crosstill.transfer.run import transfer as run

    quiet_libraries()
    named = {
        "to": to,
        "output_dir": output_dir,
        "mode": mode,
        "special_tokens": special_tokens,
    }
    overrides = recipe_overrides(context.args) | {k: v for k, v in named.items() if v is not None}
    overrides |= _yaml("initial", [initial] if initial else []) | _yaml("train", train or [])
    recipe = _recipe(model, overrides)
    summary = run(recipe, resume=resume, overwrite=overwrite, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(summary)
    else:
        names = {"teacher": "the model as it was", "model": "the model"}
        print_outcome(summary, Path(recipe.output_dir), _first_rows(summary), **names)


def _recipe(model: str, overrides: dict[str, Any]) -> "TransferRecipe":
    """The recipe that a model or a file, and the flags, amount to."""
    from crosstill.transfer.recipe import load_transfer, parse_transfer

    if Path(model).suffix.lower() in (".yaml", ".yml"):
        return load_transfer(model, overrides)
    if "to" in overrides:
        return parse_transfer({"model": model}, overrides)
    raise ConfigError(
        f"where shall {model} go? Give --to a tokenizer's folder, its tokenizer.json, a hub name, "
        f"or bytes; or give a recipe that ends in .yaml"
    )


def _yaml(key: str, values: list[str]) -> dict[str, Any]:
    """A flag that may be given several times; given once, it is YAML as all others are."""
    if len(values) > 1:
        return {key: values}
    return recipe_overrides([f"--{key}={values[0]}"]) if values else {}


def _first_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Where the rows of the first embeddings come from."""
    initialiser = summary["initialiser"]
    report = initialiser["report"].items()
    counts = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in report if count)
    return [(f"first embeddings, {initialiser['name']}", counts)]
