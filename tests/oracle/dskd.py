"""Dual-space distillation said again in float64, by loops, from the papers' formulas."""

import math

import numpy as np


def log_softmax(row, temperature=1.0):
    row = np.asarray(row, dtype=np.float64) / temperature
    top = max(row)
    return row - top - math.log(sum(math.exp(x - top) for x in row))


def divergence(name, teacher, student, temperature):
    """Of one row of logits of each side, in nats; no factor for the temperature."""
    p, q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    if name == "kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "jsd":
        middle = mixture(p, q, 0.5)
        return 0.5 * kl(p, middle) + 0.5 * kl(q, middle)
    if name == "skewed_kl":
        return kl(p, mixture(p, q, 0.1))
    if name == "skewed_reverse_kl":
        return kl(q, mixture(q, p, 0.1))
    raise AssertionError(name)


def kl(p, q):
    return sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def mixture(p, q, share):
    return [
        math.log(share * math.exp(a) + (1 - share) * math.exp(b)) for a, b in zip(p, q, strict=True)
    ]


def head(state, weight):
    """The logits of one state: one dot product for each token."""
    return [sum(float(a) * float(b) for a, b in zip(state, row, strict=True)) for row in weight]


def dskd(
    projected_teacher,
    projected_student,
    student_logits,
    teacher_logits,
    target,
    student_weight,
    teacher_weight,
    *,
    temperature=2.0,
    divergence_name="kl",
    teacher_divergence="kl",
    agreement=False,
):
    """(target term, student's space, rows that agree, teacher's space)."""
    ce = kd = back = 0.0
    agreeing = 0
    for state, logits, y in zip(projected_teacher, student_logits, target, strict=True):
        z = head(state, student_weight)
        if y >= 0:
            ce -= log_softmax(z)[y]
        agrees = y >= 0 and int(np.argmax(z)) == y
        agreeing += agrees
        if agrees or not agreement:
            kd += divergence(divergence_name, z, logits, temperature)
    for state, logits in zip(projected_student, teacher_logits, strict=True):
        back += divergence(teacher_divergence, logits, head(state, teacher_weight), temperature)
    return ce, kd, agreeing, back


def single_pairs(student_chunk, teacher_chunk):
    """(sequence, student position, teacher position) of chunks of one token on each side."""
    found = []
    for b, (mine, theirs) in enumerate(zip(student_chunk, teacher_chunk, strict=True)):
        for k in sorted({int(k) for k in mine if k >= 0}):
            s = [t for t, chunk in enumerate(mine) if chunk == k]
            t = [t for t, chunk in enumerate(theirs) if chunk == k]
            if len(s) == len(t) == 1 and s[0] > 0 and t[0] > 0:
                found.append((b, s[0], t[0]))
    return found


def linear(layer, state):
    """y = W x + b, one number at a time."""
    weight, bias = layer
    out = head(state, weight)
    return [x + float(b) for x, b in zip(out, bias, strict=True)]


def deviation(vectors):
    """Unbiased standard deviation of all numbers in some vectors."""
    numbers = [float(x) for vector in vectors for x in vector]
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1))


def attended(student, teacher, query, teacher_to_student, student_to_teacher):
    """(states in the student's space, states in the teacher's) of one sequence.

    `student` and `teacher` are lists of (embedding, embedding of the next token, hidden state) of
    the positions that predict a supervised token.
    """
    queries = [linear(query, [*now, *after]) for now, after, _ in student]
    raw = [[*now, *after] for now, after, _ in teacher]
    size = deviation(raw)
    keys = [[x / size for x in key] for key in raw]
    of_hidden = deviation([hidden for _, _, hidden in teacher])
    of_after = deviation([after for _, after, _ in teacher])
    values = [
        linear(
            teacher_to_student,
            [h / of_hidden + e / of_after for h, e in zip(hidden, after, strict=True)],
        )
        for _, after, hidden in teacher
    ]
    mine = [linear(student_to_teacher, hidden) for _, _, hidden in student]
    scores = [[x / math.sqrt(len(keys[0])) for x in head(q, keys)] for q in queries]
    to_student = [mixed(row, values) for row in scores]
    to_teacher = [mixed(column, mine) for column in zip(*scores, strict=True)]
    return to_student, to_teacher


def mixed(scores, values):
    weights = [math.exp(x) for x in log_softmax(list(scores))]
    return [
        sum(w * float(value[i]) for w, value in zip(weights, values, strict=True))
        for i in range(len(values[0]))
    ]
