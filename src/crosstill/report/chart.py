"""Line charts as SVG that take their colours from the page, so that they work on light and dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 42
# More points than this draw the same picture and only make the page heavy.
_MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line of a chart: its name and its points (x, y), in order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup:
    """Draw one to four series over a common axis, as an SVG element.

    Points that are not finite are left out. Without any point the result is empty.
    """
    kept = [
        Series(s.name, _thinned([p for p in s.points if all(map(math.isfinite, p))]))
        for s in series
    ]
    kept = [s for s in kept if s.points]
    if not kept:
        return Markup("")
    xs = [x for s in kept for x, _ in s.points]
    ys = [y for s in kept for _, y in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (x_ticks[0], x_ticks[-1])
    y_range = (min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / (y_range[1] - y_range[0])
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [_grid(x_ticks, y_ticks, x_range, place)]
    parts += [_line(s, n, place) for n, s in enumerate(kept)]
    parts.append(
        Markup('<text class="label" x="{}" y="{}" text-anchor="end">{}</text>').format(
            WIDTH - _RIGHT, HEIGHT - 6, x_label
        )
    )
    return Markup(
        '<figure class="chart"><figcaption><b>{title}</b> <span>{unit}</span>{legend}</figcaption>'
        '<svg viewBox="0 0 {w} {h}" role="img" aria-label="{title}">{parts}</svg></figure>'
    ).format(
        title=title,
        unit=y_label,
        legend=_legend(kept),
        w=WIDTH,
        h=HEIGHT,
        parts=Markup("").join(parts),
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many.

    >>> ticks(0.13, 0.94)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    >>> ticks(3, 3)
    [2.0, 3.0, 4.0]
    """
    if high <= low:
        step = 10.0 ** math.floor(math.log10(abs(low))) if low else 1.0
        return [low - step, float(low), low + step]
    raw = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(first, last + 1)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of equal runs, so that noise is not picked over."""
    run = math.ceil(len(points) / _MAX_POINTS) if points else 1
    groups = [points[n : n + run] for n in range(0, len(points), run)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _number(value: float) -> str:
    return f"{value:,.6g}"


def _grid(x_ticks, y_ticks, x_range, place) -> Markup:
    parts = []
    for y in y_ticks:
        _, at = place(x_range[0], y)
        parts.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
                '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, at, at, _LEFT - 8, at + 4, _number(y))
        )
    for x in x_ticks:
        if x_range[0] <= x <= x_range[1]:
            at, _ = place(x, y_ticks[0])
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    at, HEIGHT - _BOTTOM + 18, _number(x)
                )
            )
    return Markup("").join(parts)


def _line(series: Series, number: int, place) -> Markup:
    spots = [place(x, y) for x, y in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    line = Markup('<polyline class="line s{}" points="{}"/>').format(number, path)
    if len(spots) > 24:
        return line
    dots = [
        Markup(
            '<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3.2"><title>{}</title></circle>'
        ).format(number, x, y, f"{_number(px)}: {_number(py)}")
        for (x, y), (px, py) in zip(spots, series.points, strict=True)
    ]
    return line + Markup("").join(dots)


def _legend(series: Sequence[Series]) -> Markup:
    if len(series) == 1:
        return Markup("")
    return Markup("").join(
        Markup('<span class="key s{}">{}</span>').format(n, escape(s.name))
        for n, s in enumerate(series)
    )
