"""Everything that can be wrong with a run, checked before a weight is loaded or a step is taken."""

import os
from pathlib import Path

from crosstill.doctor.cost import examine_cost, existing_folder
from crosstill.doctor.finding import Finding, Findings
from crosstill.doctor.models import Side, examine_side
from crosstill.doctor.rows import examine_rows, read_rows
from crosstill.objectives import create
from crosstill.objectives.schedule import own_options
from crosstill.training.asked import parse_objectives
from crosstill.training.recipe import Recipe
from crosstill.training.teaching import check_same_tokenizer

__all__ = ["Finding", "Findings", "examine"]

_MEASURED = "one more forward pass, and a backward pass through the last block per objective"
_COSTS = {
    "gradmag": _MEASURED,
    "gradnorm": _MEASURED,
    "pcgrad": "a backward pass of the student and memory for its gradient per objective",
    "uncertainty": "nothing beyond a number for each objective",
}


def examine(recipe: Recipe, *, trust_remote_code: bool = False) -> Findings:
    """Check a recipe: models, tokenizers, data, alignment, output folder, memory and time.

    Every check is made, whatever the ones before it found, so that all problems show at once.
    Nothing is written, and no weight is read.
    """
    findings = Findings()
    settings = recipe.training
    student = examine_side(
        "student",
        recipe.student,
        settings.student_revision,
        trust_remote_code,
        findings,
        tokenizer_source=recipe.student_tokenizer,
    )
    teacher = examine_side(
        "teacher", recipe.teacher, settings.teacher_revision, trust_remote_code, findings
    )
    second = None
    if recipe.same_tokenizer_teacher is not None:
        second = _examine_second_teacher(recipe, student, trust_remote_code, findings)
    _examine_objectives(settings.objectives, findings)
    if settings.weighting != "fixed":
        cost = _COSTS[settings.weighting]
        findings.add("note", "weighting", f"{settings.weighting} costs {cost}")
    _examine_output(Path(recipe.output_dir), findings)
    rows = read_rows(recipe, findings)
    sample = None
    if rows is not None and student.encoder is not None and teacher.encoder is not None:
        sample = examine_rows(recipe, rows, student.encoder, teacher.encoder, findings)
    examine_cost(recipe, student, teacher, sample, findings, second)
    return findings


def _examine_second_teacher(
    recipe: Recipe, student: Side, trust_remote_code: bool, findings: Findings
) -> Side:
    """Look at the teacher that has to have the student's tokenizer, and say whether it has."""
    name = str(recipe.same_tokenizer_teacher)
    revision = recipe.training.same_tokenizer_teacher_revision
    where = "second teacher"
    second = examine_side(where, name, revision, trust_remote_code, findings)
    if student.encoder is not None and second.encoder is not None:
        encoders = student.encoder, second.encoder
        findings.attempt(where, lambda: check_same_tokenizer(*encoders))
    return second


def _examine_objectives(objectives: dict | str, findings: Findings) -> None:
    for name, given in parse_objectives(objectives).items():
        options = own_options(given)
        made = findings.attempt("objectives", lambda n=name, o=options: create(n, **o))
        if made is not None:
            needs = ", ".join(sorted(need.replace("_", " ") for need in made.needs)) or "nothing"
            findings.add("ok", "objectives", f"{name} needs of the teacher: {needs}")


def _examine_output(folder: Path, findings: Findings) -> None:
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
            f"{folder} is not empty: distil with --resume to go on there, with --overwrite to "
            f"begin anew (it is renamed, not deleted), or name another folder",
        )
    else:
        findings.add("ok", where, f"{folder} is free")
