"""What a transfer says of itself: the summary and the metrics of all its stages."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from crosstill.data.read import ReadReport
from crosstill.training.callbacks import METRICS
from crosstill.training.examiner import BEFORE
from crosstill.training.fingerprint import versions
from crosstill.training.measuring import Measured, counted
from crosstill.transfer.initial import parse_initialiser
from crosstill.transfer.recipe import TransferRecipe, short_name
from crosstill.transfer.record import STAGES, Record


def summary(
    recipe: TransferRecipe,
    record: Record,
    measures: dict[str, Any],
    data: ReadReport | None,
    *,
    vocabulary: int,
    seconds: float,
) -> dict[str, Any]:
    """Puts together what a transfer was and what came of it.

    Args:
        recipe: What was run.
        record: Its finished parts.
        measures: What was measured before and after.
        data: The rows that were read.
        vocabulary: Tokens of the target.
        seconds: Of the whole run, or since it was resumed.
    """
    initial, *stages = record.entries.values()
    sums: Counter[str] = Counter()
    for stage in stages:
        sums.update(stage["sums"])
    objectives = dict.fromkeys(stage["objective"] for stage in stages)
    return {
        "student": _name(recipe),
        "teacher": recipe.model,
        "target": {
            "to": recipe.to,
            "special_tokens": recipe.special_tokens,
            "vocabulary": vocabulary,
            "enriched": recipe.enriched,
        },
        "initialiser": {
            "name": parse_initialiser(recipe.initial).name,
            "options": recipe.initial,
            **{key: initial[key] for key in ("report", "seconds")},
        },
        "mode": recipe.mode,
        "stages": [
            {"name": name, **_told(entry)}
            for name, entry in record.entries.items()
            if "measured" in entry
        ],
        **measures,
        "teacher_divergence_after_initialisation": measures["teacher_divergence_before"],
        "steps": sum(stage["steps"] for stage in stages),
        **counted(sums, data.skipped if data is not None else {}),
        "seconds": round(seconds, 3),
        "ignored_columns": list(data.ignored_columns) if data is not None else [],
        "objective": ", then ".join(objectives),
        "seed": recipe.training.seed,
        "versions": versions(),
        "recipe": recipe.plain(),
    }


def gather_metrics(folder: Path, record: Record) -> None:
    """Writes the metrics of all finished stages into one file, steps counted through.

    While a stage runs, its lines are in `stages/NAME/metrics.jsonl`.
    """
    before = folder / BEFORE
    lines: list[dict[str, Any]] = []
    if before.exists():
        measured = Measured(**json.loads(before.read_text(encoding="utf-8")))
        lines += [{"step": 0, **measured.log_line()}] if measured.log_line() else []
    steps = 0
    for name, entry in record.entries.items():
        if "steps" not in entry:
            continue
        for line in _lines(folder / STAGES / name / METRICS):
            lines.append({**line, "step": line["step"] + steps, "stage": name})
        steps += entry["steps"]
        if found := Measured(**entry["measured"]).log_line():
            lines.append({"step": steps, **found, "stage": name})
    draft = folder / f".{METRICS}.{os.getpid()}"
    draft.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    draft.replace(folder / METRICS)


def _name(recipe: TransferRecipe) -> str:
    tokens = "bytes" if recipe.to == "bytes" else f"the tokens of {short_name(recipe.to)}"
    return f"{short_name(recipe.model)} on {tokens}"


def _told(entry: dict[str, Any]) -> dict[str, Any]:
    """What the summary says of a stage."""
    measured = entry["measured"]
    return {
        **{key: entry[key] for key in ("train", "objective", "steps", "seconds")},
        "student_tokens": int(entry["sums"].get("student_tokens", 0)),
        "teacher_divergence": measured["divergence"],
        "teacher_divergence_by_kind": measured["kinds"],
        "bits_per_byte": measured["bits_per_byte"],
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
