"""ALM said again in float64, by loops over single numbers, from the paper's formulas."""

import math

import numpy as np

EPSILON = 1e-6


def alm(
    student_logprob,
    teacher_logprob,
    student_chunk,
    teacher_chunk,
    *,
    student_boundary=None,
    teacher_boundary=None,
    temperature=100.0,
    divergence="kl",
    merge_threshold=0.0,
):
    """(total, count) of a batch; arguments as those of `functional.alm_loss`, as arrays."""
    total, count = 0.0, 0
    for b in range(len(student_logprob)):
        student = spans(student_chunk[b])
        teacher = spans(teacher_chunk[b])
        groups = merged(teacher, None if teacher_boundary is None else teacher_boundary[b],
                        merge_threshold)  # fmt: skip
        for group in groups:
            s = [t for k in group for t in student.get(k, [])]
            t = [t for k in group for t in teacher.get(k, [])]
            if not any(s) or not any(t):
                continue  # nothing but position 0, or nothing at all
            q = sum(float(student_logprob[b][i]) for i in s if i > 0)
            p = sum(float(teacher_logprob[b][i]) for i in t if i > 0)
            if student_boundary is not None:
                q += float(student_boundary[b][max(s)])
                p += float(teacher_boundary[b][max(t)])
            total += element(min(p, 0.0), min(q, 0.0), temperature, divergence)
            count += 1
    return total, count


def spans(chunk):
    """Chunk -> positions of its tokens."""
    found = {}
    for position, k in enumerate(chunk):
        if k >= 0:
            found.setdefault(int(k), []).append(position)
    return found


def merged(teacher, boundary, threshold):
    """Lists of chunk indices: a list ends where the teacher expects a boundary."""
    last = 200
    if boundary is None or threshold <= 0:
        return [[k] for k in range(last)]
    groups, open_group = [], []
    for k in range(last):
        open_group.append(k)
        if k in teacher and math.exp(float(boundary[max(teacher[k])])) > threshold:
            groups.append(open_group)
            open_group = []
    return [*groups, open_group]


def element(p, q, temperature, divergence):
    """The divergence of one chunk; p and q are log-likelihoods of teacher and student."""
    if math.isinf(temperature):
        a, b = p - EPSILON, q - EPSILON
        if divergence == "kl":
            return (a - b) + a * math.log(b / a)
        if divergence == "reverse_kl":
            return (b - a) + b * math.log(a / b)
        return abs(a - b)
    u, v = p / temperature - EPSILON, q / temperature - EPSILON
    yes_p, yes_q = math.exp(u), math.exp(v)
    no_p, no_q = -math.expm1(u), -math.expm1(v)
    if divergence == "kl":
        return yes_p * (u - v) + no_p * math.log(no_p / no_q)
    if divergence == "reverse_kl":
        return yes_q * (v - u) + no_q * math.log(no_q / no_p)
    return abs(yes_p - yes_q)


def sft(logprob, labels):
    """(total, count) of next-token training."""
    kept = [
        -float(logprob[b][t])
        for b in range(len(labels))
        for t in range(1, len(labels[b]))
        if labels[b][t] != -100
    ]
    return sum(kept), len(kept)


def log_softmax(logits):
    """Of one row of numbers."""
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.max()
    return logits - top - math.log(sum(math.exp(x - top) for x in logits))


def token_logprobs(logits, ids, vocab_size=None):
    """[B][T], 0 at position 0."""
    return np.array(
        [
            [0.0] + [log_softmax(row[t - 1][:vocab_size])[ids[b][t]] for t in range(1, len(ids[b]))]
            for b, row in enumerate(logits)
        ]
    )


def boundary_logmass(logits, mask, vocab_size=None):
    """[B][T]: log of the mass of the masked ids after each token."""
    out = []
    for row in logits:
        scores = [log_softmax(step[:vocab_size]) for step in row]
        out.append(
            [math.log(sum(math.exp(x) for x, m in zip(s, mask, strict=False) if m)) for s in scores]
        )
    return np.array(out)
