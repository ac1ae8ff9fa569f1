"""Contextual dynamic mapping said again in float64 by plain loops, from the specification."""

import math

import numpy as np

from oracle import dtw


def top(row, k):
    """The k likeliest ids, the likeliest first, the lower id among equals."""
    return sorted(range(len(row)), key=lambda id: (-float(row[id]), id))[:k]


def mapping(student_top, teacher_top, student_strings, teacher_strings, shared, theta):
    """{(student id, teacher id), ...} of one group, and the covered top tokens of both sides."""
    to_student = {int(t): int(s) for s, t in shared}
    to_teacher = {int(s): int(t) for s, t in shared}
    pairs = {(to_student[t], t) for t in teacher_top if t in to_student}
    pairs |= {(s, to_teacher[s]) for s in student_top if s in to_teacher}
    left = [s for s in student_top if s not in to_teacher and student_strings[s]]
    right = [t for t in teacher_top if t not in to_student and teacher_strings[t]]
    while left and right:
        options = []
        for s in left:
            for t in right:
                a, b = student_strings[s], teacher_strings[t]
                near = dtw.levenshtein(a, b) / (len(a) + len(b))
                options.append((near, student_top.index(s), teacher_top.index(t), s, t))
        near, _, _, s, t = min(options)
        if not near < theta:
            break
        pairs.add((s, t))
        left.remove(s)
        right.remove(t)
    covered = (
        sum(any(s == pair[0] for pair in pairs) for s in student_top),
        sum(any(t == pair[1] for pair in pairs) for t in teacher_top),
    )
    return pairs, covered


def softmax(numbers):
    """Of a list of numbers; minus infinity is probability 0."""
    best = max(numbers)
    shares = [math.exp(x - best) for x in numbers]
    total = math.fsum(shares)
    return [share / total for share in shares]


def divergence(student_row, teacher_row, pairs, temperature=1.0):
    """tau^2 KL(teacher || student) over the pairs of one group."""
    pairs = sorted(pairs)
    if not pairs:
        return 0.0
    q = softmax([float(student_row[s]) / temperature for s, _ in pairs])
    p = softmax([float(teacher_row[t]) / temperature for _, t in pairs])
    terms = [a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0]
    return temperature**2 * math.fsum(terms)


def unmapped(row, ids):
    """The probability outside some ids."""
    inside = set(ids)
    return math.fsum(p for id, p in enumerate(softmax(list(map(float, row)))) if id not in inside)


def mean_row(rows, shares):
    """The weighted sum of rows; shares is {row: weight}."""
    return sum(weight * np.asarray(rows[at], np.float64) for at, weight in shares.items())


def sequence(student, teacher, *, k, theta, shared, integer=False, temperature=1.0):
    """The mean divergence of one sequence by time warping, and its report.

    `student` and `teacher` are (rows of logits, strings of its tokens for the path, strings of its
    vocabulary for the mapping).
    """
    (student_rows, student_text, student_names), (teacher_rows, teacher_text, teacher_names) = (
        student,
        teacher,
    )
    steps, _ = dtw.path(
        teacher_text,
        student_text,
        dtw.weights([dtw.entropy(list(map(float, row))) for row in teacher_rows], integer),
        dtw.weights([dtw.entropy(list(map(float, row))) for row in student_rows], integer),
    )
    total, report = [], []
    for of_teacher, of_student in zip(*dtw.groups(steps), strict=True):
        one, two = mean_row(student_rows, of_student), mean_row(teacher_rows, of_teacher)
        tops = top(one, k), top(two, k)
        pairs, covered = mapping(*tops, student_names, teacher_names, shared, theta)
        total.append(divergence(one, two, pairs, temperature))
        report.append(
            {
                "alignment_rate": float(
                    "".join(student_text[j] for j in sorted(of_student))
                    == "".join(teacher_text[i] for i in sorted(of_teacher))
                ),
                "mapping_coverage": (covered[0] / len(tops[0]) + covered[1] / len(tops[1])) / 2,
                "unmapped_student": unmapped(one, [s for s, _ in pairs]),
                "unmapped_teacher": unmapped(two, [t for _, t in pairs]),
            }
        )
    means = {key: math.fsum(group[key] for group in report) / len(report) for key in report[0]}
    return math.fsum(total) / len(total), means


def shared_space(student, teacher, shared):
    """Both embeddings turned by orthogonal Procrustes on the centred rows of shared tokens."""
    turned = []
    for matrix, ids in ((student, shared[:, 0]), (teacher, shared[:, 1])):
        matrix = np.asarray(matrix, np.float64)
        matrix = matrix - matrix[ids].mean(0)
        turned.append(matrix / np.linalg.norm(matrix, axis=1, keepdims=True))
    product = turned[0][shared[:, 0]].T @ turned[1][shared[:, 1]]
    u, _, vt = np.linalg.svd(product, full_matrices=False)
    return unit(turned[0] @ u), unit(turned[1] @ vt.T)


def unit(rows):
    """Rows of length one."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
