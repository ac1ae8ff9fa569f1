"""`crosstill distill`: train a student from a teacher."""

from pathlib import Path
from typing import Annotated

import typer

from crosstill.cli.options import (
    Debug,
    Json,
    RecipeFile,
    TrustRemoteCode,
    print_json,
    quiet_libraries,
    recipe_overrides,
)
from crosstill.cli.outcome import print_outcome


def distill(
    context: typer.Context,
    recipe: RecipeFile,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew; the old output folder is renamed.")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a student from a teacher.

    Writes the model, metrics.jsonl, summary.json and report.html.

    Every key of the recipe is a flag as well: --output-dir runs/two --learning-rate 1e-4
    """
    from crosstill.training.recipe import load_recipe
    from crosstill.training.run import distill as run

    quiet_libraries()
    loaded = load_recipe(recipe, recipe_overrides(context.args))
    summary = run(loaded, resume=resume, overwrite=overwrite, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(summary)
    else:
        print_outcome(summary, Path(loaded.output_dir))
