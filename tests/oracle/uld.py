"""ULD said again in float64, by loops over single numbers."""

import math


def probabilities(logits, temperature=1.0):
    """Of one row of numbers."""
    scaled = [float(x) / temperature for x in logits]
    top = max(scaled)
    weights = [math.exp(x - top) for x in scaled]
    return [w / sum(weights) for w in weights]


def sorted_distance(p, q):
    """Sum over ranks of |difference|; what one side lacks counts as 0."""
    p, q = sorted(p, reverse=True), sorted(q, reverse=True)
    total = 0.0
    for r in range(max(len(p), len(q))):
        a = p[r] if r < len(p) else 0.0
        b = q[r] if r < len(q) else 0.0
        total += abs(a - b)
    return total


def uld(student_logits, teacher_logits, student_temperature=1.0, teacher_temperature=1.0):
    """(total, count) over the rows."""
    total = 0.0
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        p = probabilities(student, student_temperature)
        q = probabilities(teacher, teacher_temperature)
        total += sorted_distance(p, q)
    return total, len(student_logits)


def truncated(student_logits, teacher_logits, k):
    """(total of the k largest, mass left out on both sides)."""
    total = left = 0.0
    for student, teacher in zip(student_logits, teacher_logits, strict=True):
        p = sorted(probabilities(student), reverse=True)
        q = sorted(probabilities(teacher), reverse=True)
        total += sorted_distance(p[:k], q[:k])
        left += sum(p[k:]) + sum(q[k:])
    return total, left


def slope(p, q):
    """Derivative of the sorted distance by each entry of p: the sign at its rank, ties averaged."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    q = sorted(q, reverse=True)
    sign = {}
    for r, i in enumerate(order):
        other = q[r] if r < len(q) else 0.0
        sign[i] = float(p[i] > other) - float(p[i] < other)
    out = []
    for i in range(len(p)):
        same = [j for j in range(len(p)) if p[j] == p[i]]
        out.append(sum(sign[j] for j in same) / len(same))
    return out
