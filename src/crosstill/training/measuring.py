"""What is measured of a student before, during and after a run, and the summary of it."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from crosstill.evaluation.bits_per_byte import bits_per_byte
from crosstill.evaluation.divergence import sample_teacher, teacher_divergence
from crosstill.evaluation.samples import Samples
from crosstill.text.encode import TextEncoder


@dataclass
class Measured:
    """What was measured of a student; None where the recipe has nothing to measure on.

    Attributes:
        bits_per_byte: On the recipe's held-out real texts.
        divergence: Teacher divergence in bits per byte.
        standard_error: Of the divergence.
        kinds: The divergence by kind of text.
        answers: What it wrote to the first prompt of each kind.
    """

    bits_per_byte: float | None = None
    divergence: float | None = None
    standard_error: float | None = None
    kinds: dict[str, float] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)

    def log_line(self) -> dict[str, float]:
        """The numbers as a line of metrics."""
        line = {"eval_bits_per_byte": self.bits_per_byte, "eval_divergence": self.divergence}
        line |= {f"eval_divergence/{kind}": value for kind, value in self.kinds.items()}
        return {name: value for name, value in line.items() if value is not None}


def measured(
    student: PreTrainedModel,
    encoder: TextEncoder,
    texts: Sequence[str],
    samples: Samples | None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Measured:
    """Measures a student on real texts and on its teacher's own texts, where there are any."""
    found = Measured()
    if texts:
        found.bits_per_byte = bits_per_byte(student, encoder, texts)
    if samples is not None:
        gap = teacher_divergence(
            student, encoder, None, None, samples, chat_template_kwargs=chat_template_kwargs
        )
        found.divergence = gap.overall.divergence
        found.standard_error = gap.overall.standard_error
        found.kinds = {kind: part.divergence for kind, part in gap.kinds.items()}
    return found


def answered(
    student: PreTrainedModel,
    encoder: TextEncoder,
    prompts: Mapping[str, Sequence[Any]],
    max_new_tokens: int,
    seed: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Lets a student answer the first prompt of each kind, drawn as the teacher's texts are."""
    first = {kind: group[:1] for kind, group in prompts.items()}
    with tempfile.TemporaryDirectory() as folder:
        drawn = sample_teacher(
            student,
            encoder,
            first,
            max_new_tokens=max_new_tokens,
            seed=seed,
            path=Path(folder) / "answers.jsonl",
            chat_template_kwargs=chat_template_kwargs,
        )
    return {item.kind: item.response for item in drawn.items}


def completions(
    samples: Samples | None, before: Mapping[str, str], after: Mapping[str, str]
) -> list[dict[str, str]]:
    """Puts what teacher and student wrote to the first prompt of each kind side by side."""
    found: dict[str, dict[str, str]] = {}
    for item in samples.items if samples is not None else ():
        if item.kind not in found:
            asked = item.prompt if isinstance(item.prompt, str) else item.prompt[-1]["content"]
            found[item.kind] = {
                "prompt": asked,
                "teacher": item.response,
                "before": before.get(item.kind, ""),
                "after": after.get(item.kind, ""),
            }
    return list(found.values())


def compared(before: Measured, after: Measured) -> dict[str, Any]:
    """The keys of the summary that compare the student before and after.

    Example:
        >>> compared(Measured(divergence=2.0), Measured(divergence=0.5))["gap_closed"]
        0.75
    """
    closed = None
    if before.divergence and after.divergence is not None:
        closed = 1.0 - after.divergence / before.divergence
    return {
        "teacher_divergence_before": before.divergence,
        "teacher_divergence_after": after.divergence,
        "teacher_divergence_standard_error": after.standard_error,
        "teacher_divergence_before_by_kind": before.kinds,
        "teacher_divergence_after_by_kind": after.kinds,
        "gap_closed": closed,
        "student_bits_per_byte_before": before.bits_per_byte,
        "student_bits_per_byte_after": after.bits_per_byte,
    }


def counted(sums: Mapping[str, float], read_skipped: Mapping[str, int]) -> dict[str, Any]:
    """The keys of the summary that count what was trained on and what was left out.

    Example:
        >>> counted({"rows": 3.0, "skipped/empty": 1.0}, {"empty": 2})["rows_skipped"]
        {'empty': 3}
    """
    skipped = dict(read_skipped)
    for name, count in sums.items():
        if name.startswith("skipped/") and count:
            reason = name.removeprefix("skipped/")
            skipped[reason] = skipped.get(reason, 0) + int(count)
    read = sums.get("student_bytes", 0.0)
    return {
        **{name: int(sums.get(name, 0)) for name in ("rows", "student_tokens", "teacher_tokens")},
        "cut_bytes": int(sums.get("cut_bytes", 0)),
        "aligned_byte_fraction": sums["aligned_bytes"] / read if read else None,
        "rows_skipped": skipped,
    }


@contextmanager
def own_forward(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it computes by itself: without the autocast that training put round it.

    So the student is measured in the same arithmetic before, during and after, and in that of
    whoever loads it later.
    """
    wrapped = vars(model).pop("forward", None)
    try:
        yield model
    finally:
        if wrapped is not None:
            model.forward = wrapped
