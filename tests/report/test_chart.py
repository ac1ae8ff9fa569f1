import math
import xml.etree.ElementTree as ET
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from crosstill.report.chart import HEIGHT, WIDTH, Series, line_chart, ticks

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@given(FINITE, FINITE)
def test_ticks_surround_the_range_in_even_steps(a, b):
    low, high = min(a, b), max(a, b)
    found = ticks(low, high)
    slack = 1e-6 * max(1e-12, abs(low), abs(high), high - low)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 12
    steps = [second - first for first, second in pairwise(found)]
    assert all(step > 0 for step in steps)
    assert max(steps) - min(steps) <= 1e-6 * max(steps) + slack


@given(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=600))
def test_every_line_is_drawn_inside_the_frame(points):
    svg = line_chart([Series("loss", sorted(points))], title="t", x_label="x", y_label="y")
    root = ET.fromstring(f"<r>{svg}</r>".replace("&", "&amp;"))  # noqa: S314
    for line in root.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert -0.1 <= x <= WIDTH + 0.1
            assert -0.1 <= y <= HEIGHT + 0.1


def test_a_falling_loss_falls_on_the_page():
    svg = line_chart([Series("loss", [(1, 9.0), (2, 1.0)])], title="t", x_label="x", y_label="y")
    root = ET.fromstring(f"<r>{svg}</r>")  # noqa: S314
    (line,) = root.iter("polyline")
    (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in line.attrib["points"].split())
    assert x2 > x1
    assert y2 > y1  # y grows downwards


def test_values_that_are_not_finite_are_left_out():
    points = [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)]
    svg = line_chart([Series("loss", points)], title="t", x_label="x", y_label="y")
    assert svg.count("<circle") == 2
    only = line_chart([Series("loss", [(1, math.nan)])], title="t", x_label="x", y_label="y")
    assert only == ""


def test_names_are_escaped():
    svg = line_chart(
        [Series("<b>", [(1, 1)]), Series("two", [(1, 2)])],
        title="<script>",
        x_label='"',
        y_label="&",
    )
    assert "<script>" not in svg
    assert svg.count("<b>") == 1  # the title
    assert "&lt;b&gt;" in svg
