"""Pairing by position: against a plain restatement."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill.functional.positions import position_rows, predicted

ROW = st.lists(st.booleans(), min_size=1, max_size=8)


@given(st.lists(st.tuples(ROW, ROW), min_size=1, max_size=3))
def test_the_kth_supervised_token_meets_the_kth(rows):
    student, teacher = (torch.tensor([padded(row[side]) for row in rows]) for side in range(2))
    expected = []
    for b, sides in enumerate(rows):
        left, right = ([t - 1 for t, on in enumerate(side) if on and t > 0] for side in sides)
        expected += [(b, *pair) for pair in zip(left, right, strict=False)]
    pairs = position_rows(student, teacher)
    got = zip(
        *(x.tolist() for x in (pairs.batch, pairs.student_row, pairs.teacher_row)), strict=True
    )
    assert list(got) == expected
    tokens = predicted(student, pairs.batch, pairs.student_row)
    assert set(map(tuple, tokens.nonzero().tolist())) == {(b, s + 1) for b, s, _ in expected}


def padded(row):
    return [7 if on else -100 for on in row] + [-100] * (8 - len(row))
