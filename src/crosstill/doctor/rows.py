"""The doctor looks at the data: the first rows, read and aligned as the run would."""

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

from crosstill.data.pairs import PairedRow, pair_row
from crosstill.data.read import read_dataset
from crosstill.doctor.finding import Findings
from crosstill.errors import DataError
from crosstill.text.encode import TextEncoder, budgets
from crosstill.text.rows import LossOn, RowFault
from crosstill.training.recipe import Recipe
from crosstill.training.texts import read_prompts, read_texts
from crosstill.transfer.recipe import TransferRecipe

SAMPLE_ROWS = 200
# Below this share of aligned bytes the teacher is hardly heard.
_FEW_ALIGNED = 0.9


@dataclass(frozen=True)
class Sample:
    """What the first rows are like.

    Attributes:
        rows: rows in the whole data set.
        student_tokens: mean of the rows that can be used, after truncation.
        teacher_tokens: likewise.
    """

    rows: int
    student_tokens: float
    teacher_tokens: float


def read_rows(recipe: Recipe | TransferRecipe, findings: Findings) -> Any | None:
    """The training rows, or None where they cannot be read; held-out texts are tried as well."""
    source, rows = recipe.train, None
    if source is None:
        findings.add("note", "data", "nothing to train on: the embeddings are made, no more")
    else:
        rows = findings.attempt(
            "data",
            lambda: read_dataset(
                source,
                recipe.train_split,
                on_bad_row="skip" if recipe.on_bad_row == "skip" else "raise",
                max_bad_rows=recipe.max_bad_rows,
            ),
        )
    if rows is not None:
        findings.add("ok", "data", f"{source}: {len(rows):,} rows")
    findings.attempt("held-out texts", lambda: read_texts(recipe.eval_texts))
    findings.attempt("prompts", lambda: read_prompts(recipe.prompts))
    return rows


def examine_rows(
    recipe: Recipe | TransferRecipe,
    rows: Any,
    student: TextEncoder,
    teacher: TextEncoder,
    findings: Findings,
) -> Sample | None:
    """Render and align the first rows; None where none of them can be used."""
    paired, faults = findings.attempt(
        "data", lambda: _pair_first(recipe, rows, student, teacher)
    ) or ([], [])
    for reason, count in Counter(fault.reason for fault in faults).items():
        first = next(fault for fault in faults if fault.reason == reason)
        findings.add(
            "warning",
            "data",
            f"{count} of the first {len(paired) + len(faults)} rows are skipped ({reason}): "
            f"{first}",
        )
    if not paired:
        if faults:
            error = f"none of the first {len(faults)} rows can be used; see the warnings above"
            findings.attempt("alignment", lambda: _raise(DataError(error)))
        return None
    _describe_alignment(paired, findings)
    return Sample(
        rows=len(rows),
        student_tokens=sum(len(row.student_ids) for row in paired) / len(paired),
        teacher_tokens=sum(len(row.teacher_ids) for row in paired) / len(paired),
    )


def _pair_first(
    recipe: Recipe | TransferRecipe, rows: Any, student: TextEncoder, teacher: TextEncoder
) -> tuple[list[PairedRow], list[RowFault]]:
    settings = recipe.training
    paired, faults = [], []
    for row in islice(rows, SAMPLE_ROWS):
        try:
            paired.append(
                pair_row(
                    row,
                    student,
                    teacher,
                    max_length=budgets(student, teacher, settings.max_length),
                    loss_on=cast(LossOn, settings.loss_on),  # DistillConfig has checked it
                    chat_template_kwargs=settings.chat_template_kwargs,
                    teacher_chat_template_kwargs=settings.teacher_chat_template_kwargs or None,
                )
            )
        except RowFault as fault:
            faults.append(fault)
    return paired, faults


def _describe_alignment(paired: list[PairedRow], findings: Findings) -> None:
    spelled = sum(row.student_bytes for row in paired)
    aligned = sum(row.aligned_bytes for row in paired)
    cut = sum(row.cut_bytes for row in paired)
    share = aligned / spelled if spelled else 0.0
    findings.add(
        "ok" if share >= _FEW_ALIGNED else "warning",
        "alignment",
        f"{share:.1%} of the bytes of {len(paired)} rows are aligned",
    )
    if cut:
        findings.add(
            "note",
            "alignment",
            f"max_length cuts {cut / (cut + spelled):.1%} of the bytes away; raise it to keep them",
        )


def _raise(error: Exception) -> None:
    raise error
