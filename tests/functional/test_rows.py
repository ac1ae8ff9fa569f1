"""Rows that belong together."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from crosstill.functional import chunk_rows, label_rows
from functional.cases import random_case


@given(st.integers(0, 10_000))
def test_chunk_rows_are_the_chunks_of_both_sides(seed):
    case = random_case(seed, rows=3, student=9, teacher=7)
    rows = chunk_rows(case.student_chunk, case.teacher_chunk)
    expected = []
    for b in range(3):
        for k in range(9):
            sides = [
                [t for t, c in enumerate(side[b].tolist()) if c == k]
                for side in (case.student_chunk, case.teacher_chunk)
            ]
            if all(sides) and all(side[0] > 0 for side in sides):
                s, t = sides
                expected.append((b, k, s[0] - 1, t[0] - 1, s[-1], t[-1], s[-1] - s[0] + 1,
                                 t[-1] - t[0] + 1))  # fmt: skip
    found = torch.stack(
        [rows.batch, rows.chunk, rows.student_row, rows.teacher_row, rows.student_end,
         rows.teacher_end, rows.student_length, rows.teacher_length], 1)  # fmt: skip
    assert [tuple(row) for row in found.tolist()] == expected


def test_a_chunk_at_position_0_is_predicted_by_nothing():
    rows = chunk_rows(torch.tensor([[0, 1]]), torch.tensor([[-1, 0]]))
    assert rows.batch.numel() == 0


@given(st.integers(0, 10_000))
def test_label_rows_predict_the_labels(seed):
    labels = random_case(seed).labels
    batch, row, target = label_rows(labels)
    expected = [
        (b, t - 1, int(labels[b, t]))
        for b in range(labels.shape[0])
        for t in range(1, labels.shape[1])
        if labels[b, t] != -100
    ]
    assert list(zip(batch.tolist(), row.tolist(), target.tolist(), strict=True)) == expected
