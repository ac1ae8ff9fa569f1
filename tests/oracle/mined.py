"""MinED in plain loops, float64."""

import math

import numpy as np

FLOOR = -1e4


def softmax(logits, temperature):
    """Of one row; a row of nothing but -inf is uniform."""
    top = max(logits)
    if top == -math.inf:
        return [1.0 / len(logits)] * len(logits)
    weights = [math.exp((z - top) / temperature) for z in logits]
    return [weight / sum(weights) for weight in weights]


def carried(probabilities, token_map, size, merge):
    """What every student token is given of a teacher's row."""
    given: list[list[float]] = [[] for _ in range(size)]
    for v, p in enumerate(probabilities):
        if token_map[v] >= 0:
            given[token_map[v]].append(p)
    if merge == "sum":
        return [sum(parts) for parts in given]
    if merge == "max":
        return [max(parts, default=0.0) for parts in given]
    return [parts[0] if parts else 0.0 for parts in given]


def log_q(logits, temperature):
    """Log-probabilities of one row, not below the floor."""
    return [max(math.log(q), FLOOR) if q > 0 else FLOOR for q in softmax(logits, temperature)]


def mined(student_logits, teacher_logits, token_map, temperature=1.0, merge="sum"):
    """(total, count, mapped mass)."""
    total, mapped = 0.0, 0.0
    student_logits = np.asarray(student_logits, np.float64)
    for own, other in zip(student_logits, np.asarray(teacher_logits, np.float64), strict=True):
        target = carried(softmax(other, temperature), token_map, len(own), merge)
        mass = sum(target)
        mapped += mass
        for p, q in zip(target, log_q(own, temperature), strict=True):
            if p > 0:
                total += temperature**2 * p / mass * (math.log(p / mass) - q)
    return total, len(student_logits), mapped


def one_hot(student_logits, target, temperature=1.0):
    """(total, count)."""
    rows = np.asarray(student_logits, np.float64)
    each = [log_q(row, temperature)[y] for row, y in zip(rows, target, strict=True)]
    return -(temperature**2) * sum(each), len(rows)
