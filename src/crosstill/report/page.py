"""From the numbers of a run to what the page shows: plain values, no HTML but the charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from crosstill.report.chart import Series, line_chart

NO_VALUE = "\N{EN DASH}"


@dataclass(frozen=True)
class Fact:
    """One headline number: what it is, and what it was before where that is known."""

    label: str
    value: str
    before: str = ""


def facts(summary: Mapping[str, Any]) -> list[Fact]:
    """The headline numbers of a run; those that the summary lacks are left out."""
    found = [
        _change(summary, "teacher_divergence", "teacher divergence, bits per byte"),
        _change(summary, "student_bits_per_byte", "student on real text, bits per byte"),
        _single(summary, "teacher_bits_per_byte", "teacher on real text, bits per byte", "{:.3f}"),
        _single(summary, "aligned_byte_fraction", "of the bytes aligned", "{:.1%}"),
        _single(summary, "steps", "steps", "{:,}"),
    ]
    if _is_number(summary.get("seconds")):
        found.append(Fact("for everything", duration(summary["seconds"])))
    return [fact for fact in found if fact is not None]


def gap(summary: Mapping[str, Any]) -> str:
    """The headline of headlines: the share of the gap that is closed, or nothing."""
    closed = summary.get("gap_closed")
    return percent(float(closed)) if closed is not None and _is_number(closed) else ""


def kinds(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of divergences, one a kind of text, widest gap first."""
    names = [name for name in after if _is_number(after[name])]
    known = {name: before[name] for name in names if _is_number(before.get(name))}
    widest = max([0.0, *known.values(), *(after[name] for name in names)])

    def width(value: float) -> int:
        return round(100 * max(0.0, value) / widest) if widest > 0 else 0

    rows = []
    for name in sorted(names, key=lambda name: -known.get(name, 0.0)):
        was, now = known.get(name), after[name]
        rows.append(
            {
                "kind": name,
                "before": NO_VALUE if was is None else f"{was:.3f}",
                "after": f"{now:.3f}",
                "closed": percent(1 - now / was) if was else NO_VALUE,
                "before_width": 0 if was is None else width(was),
                "after_width": width(now),
            }
        )
    return rows


def charts(lines: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Curves of the run from the lines of metrics.jsonl: losses, divergence, bits per byte."""
    keys = {key for line in lines for key in line}
    losses = sorted(key for key in keys if key.startswith("loss/"))
    gaps = sorted(key for key in keys if key.startswith("eval_divergence/"))
    drawn = [_chart(lines, {"loss": "loss"}, "Training loss", "as optimised")]
    if len(losses) > 1:
        drawn += [_chart(lines, {key: key}, f"Loss of {key[5:]}", "mean, nats") for key in losses]
    drawn += [
        _chart(
            lines,
            {"eval_divergence": "all kinds"}
            | ({key: key.split("/", 1)[1] for key in gaps} if len(gaps) > 1 else {}),
            "Teacher divergence",
            "bits per byte",
        ),
        _chart(
            lines,
            {"eval_bits_per_byte": "held-out text", "bits_per_byte": "training rows"},
            "Bits per byte",
            "of the student",
        ),
        _chart(lines, {"grad_norm": "norm"}, "Gradient norm", "before clipping"),
    ]
    return [chart for chart in drawn if chart]


def last_line(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured after the last step, as a line of metrics: the end of the curves."""
    kinds_after = summary.get("teacher_divergence_after_by_kind") or {}
    return {
        "step": summary.get("steps"),
        "eval_divergence": summary.get("teacher_divergence_after"),
        "eval_bits_per_byte": summary.get("student_bits_per_byte_after"),
        **{f"eval_divergence/{kind}": value for kind, value in kinds_after.items()},
    }


def counts(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was read, aligned and left out, by reason; nothing is left out silently."""
    rows = []
    for key, label, form in (
        ("rows", "rows read", "{:,}"),
        ("student_tokens", "student tokens trained on", "{:,}"),
        ("teacher_tokens", "teacher tokens read", "{:,}"),
        ("chunks", "chunks compared", "{:,}"),
        ("aligned_byte_fraction", "share of bytes aligned", "{:.2%}"),
    ):
        if _is_number(summary.get(key)):
            rows.append({"name": label, "value": form.format(summary[key])})
    for reason, count in (summary.get("rows_skipped") or {}).items():
        rows.append({"name": f"rows skipped: {reason.replace('_', ' ')}", "value": f"{count:,}"})
    return rows


def completions(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Prompts with what the models wrote: the teacher, the student before and after."""
    return [
        {
            "prompt": entry["prompt"],
            "answers": [
                {"who": who, "text": entry[who]}
                for who in ("before", "after", "teacher")
                if entry.get(who)
            ],
        }
        for entry in entries
    ]


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names with their values.

    >>> flat({"training": {"seed": 3}, "student": "small"})
    [('training.seed', '3'), ('student', 'small')]
    """
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


def percent(share: float) -> str:
    """A share in whole percent; never "-0%".

    >>> percent(0.664), percent(-0.001)
    ('66%', '0%')
    """
    return f"{round(100 * share) or 0}%"


def duration(seconds: float) -> str:
    """A time a person reads at a glance.

    >>> duration(42), duration(605), duration(7265)
    ('42 s', '10 min', '2 h 01 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _single(summary: Mapping[str, Any], key: str, label: str, form: str) -> Fact | None:
    value = summary.get(key)
    return Fact(label, form.format(value)) if _is_number(value) else None


def _change(summary: Mapping[str, Any], key: str, label: str) -> Fact | None:
    before, after = summary.get(f"{key}_before"), summary.get(f"{key}_after")
    if not _is_number(after):
        return None
    return Fact(label, f"{after:.3f}", f"{before:.3f}" if _is_number(before) else "")


def _chart(
    lines: Sequence[Mapping[str, Any]], names: Mapping[str, str], title: str, unit: str
) -> Markup:
    """A chart with one line a key, at most four: more than that are a tangle."""
    series = [
        Series(
            name,
            [
                (float(line["step"]), float(line[key]))
                for line in lines
                if _is_number(line.get(key)) and _is_number(line.get("step"))
            ],
        )
        for key, name in list(names.items())[:4]
    ]
    return line_chart(series, title=title, x_label="step", y_label=unit)
