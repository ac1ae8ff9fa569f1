"""Weights over the steps of a run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosstill.errors import ConfigError
from crosstill.objectives import Schedule
from crosstill.objectives.schedule import plain_weight, read_weight
from oracle import weighting as oracle


@given(
    st.sampled_from(["linear", "cosine"]),
    st.floats(0, 3),
    st.floats(0.001, 3),
    st.floats(0.05, 1.0),
    st.integers(1, 500),
    st.data(),
)
def test_a_schedule_is_what_the_oracle_says(shape, start, end, over, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    found = Schedule(shape, start, end, over).at(step, steps)
    expected = oracle.schedule(shape, start, end, over, step, steps)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (2.0, 0.0)])
def test_it_goes_from_start_to_end_and_stays_there(shape, start, end):
    half = [Schedule(shape, start, end, 0.5).at(step, 20) for step in range(20)]
    assert half[0] == start
    assert half[9:] == [pytest.approx(end)] * 11
    assert half[:10] == sorted(half[:10], reverse=start > end)
    assert Schedule(shape, start, end).at(19, 20) == pytest.approx(end)
    assert Schedule(shape, start, end).at(0, 1) == start


def test_what_recipes_hold_is_read_and_said_again():
    held = {"schedule": "cosine", "start": 1.0, "end": 0.0, "over": 0.5}
    assert plain_weight(read_weight("w", held)) == held
    assert plain_weight(read_weight("w", 2)) == 2.0
    assert read_weight("w", {"schedule": "constant", "start": 2}).at(7, 9) == 2.0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "above 0"),
        (float("nan"), "above 0"),
        (True, "must be a float"),
        ("hot", "must be a float"),
        ({"schedule": "linear", "start": 1}, "without end"),
        ({"schedule": "steps", "start": 1, "end": 0}, "schedule must be one of"),
        ({"schedule": "linear", "start": -1, "end": 0}, "start must be at least 0"),
        ({"schedule": "linear", "start": 0, "end": 0}, "above 0 somewhere"),
        ({"schedule": "linear", "start": 0, "end": 1, "over": 0}, "over must be"),
        ({"schedule": "linear", "start": 0, "end": 1, "ower": 1}, "no key ower"),
        ({"schedule": "linear", "start": 0, "end": "x"}, "w.end must be a number"),
        ({"schedule": "constant", "start": 0.5, "end": 1.0}, "one weight"),
    ],
)
def test_mistakes_are_named(value, words):
    with pytest.raises(ConfigError, match=words):
        read_weight("w", value)
