"""`crosstill methods`: the objectives that exist."""

from dataclasses import asdict

from crosstill.cli.options import Debug, Json, print_json, print_table


def methods(as_json: Json = False, debug: Debug = False) -> None:
    """List the objectives, their papers and options."""
    from crosstill.objectives import methods as list_methods

    found = list_methods()
    if as_json:
        print_json([asdict(method) for method in found])
        return
    for method in found:
        print_table(
            ("", method.name),
            [
                ("paper", method.paper),
                ("choose", method.choose),
                ("needs", ", ".join(need.replace("_", " ") for need in method.needs) or "nothing"),
                ("cost", method.cost),
                *((f"  {o.name} = {o.default}", o.help) for o in method.options),
            ],
        )
