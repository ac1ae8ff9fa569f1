"""The doctor looks at what a recipe asks for: its objectives, and the folder it writes to."""

import os
from pathlib import Path

from crosstill.doctor.cost import existing_folder
from crosstill.doctor.finding import Findings
from crosstill.objectives import create
from crosstill.objectives.schedule import own_options
from crosstill.training.asked import parse_objectives
from crosstill.training.config import DistillConfig

_MEASURED = "one more forward pass, and a backward pass through the last block per objective"
_COSTS = {
    "gradmag": _MEASURED,
    "gradnorm": _MEASURED,
    "pcgrad": "a backward pass of the student and memory for its gradient per objective",
    "uncertainty": "nothing beyond a number for each objective",
}


def examine_objectives(settings: DistillConfig, findings: Findings) -> None:
    """Say what the objectives need of a teacher, and what their weighting costs."""
    for name, given in parse_objectives(settings.objectives).items():
        options = own_options(given)
        made = findings.attempt("objectives", lambda n=name, o=options: create(n, **o))
        if made is not None:
            needs = ", ".join(sorted(need.replace("_", " ") for need in made.needs)) or "nothing"
            findings.add("ok", "objectives", f"{name} needs of the teacher: {needs}")
    if settings.weighting != "fixed":
        cost = _COSTS[settings.weighting]
        findings.add("note", "weighting", f"{settings.weighting} costs {cost}")


def examine_output(folder: Path, findings: Findings) -> None:
    """Say whether a run could write there; like `training.output`, but touching nothing."""
    where = "output folder"
    if folder.exists() and not folder.is_dir():
        findings.add("error", where, f"{folder} is a file: name a folder")
    elif not os.access(existing_folder(folder), os.W_OK):
        findings.add("error", where, f"{folder} cannot be written to: name another folder")
    elif folder.is_dir() and any(folder.iterdir()):
        findings.add(
            "warning",
            where,
            f"{folder} is not empty: use --resume to go on there, with --overwrite to "
            f"begin anew (it is renamed, not deleted), or name another folder",
        )
    else:
        findings.add("ok", where, f"{folder} is free")
