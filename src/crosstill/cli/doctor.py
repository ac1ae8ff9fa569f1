"""`crosstill doctor`: what can be wrong with a recipe, before anything is loaded."""

from dataclasses import asdict

import typer

from crosstill.cli.options import (
    Debug,
    Json,
    RecipeFile,
    TrustRemoteCode,
    print_json,
    print_table,
    quiet_libraries,
    recipe_overrides,
)

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


def doctor(
    context: typer.Context,
    recipe: RecipeFile,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check a recipe, of distill or of transfer, before a weight is loaded.

    Looked at are files, tokenizers, templates, data, output folder, memory, disk and time. Leaves
    with 0 where the run can start, 2 or 3 where it cannot. Recipe keys are flags, as in distill.
    """
    from rich.text import Text

    from crosstill.doctor import examine
    from crosstill.training.recipe import load_recipe
    from crosstill.training.recipe_file import read_file
    from crosstill.transfer.recipe import load_transfer

    quiet_libraries()
    load = load_transfer if "to" in read_file(recipe) else load_recipe
    loaded = load(recipe, recipe_overrides(context.args))
    findings = examine(loaded, trust_remote_code=trust_remote_code)
    if as_json:
        print_json(
            {"findings": [asdict(f) for f in findings.items], "exit_code": findings.exit_code}
        )
    else:
        print_table(
            ("", "where", "what"),
            [(Text(f.level, _COLOURS[f.level]), f.where, f.what) for f in findings.items],
        )
    if findings.exit_code:
        raise typer.Exit(findings.exit_code)
