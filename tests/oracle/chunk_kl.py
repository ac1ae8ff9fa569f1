"""Chunk KL said again in float64, by loops over single numbers."""

import math

from oracle.alm import spans

FLOOR, SURE = -1e4, 1e-3


def chunk_kl(student_logprob, teacher_logprob, student_chunk, teacher_chunk, *, credit="equal",
             clip=10.0):  # fmt: skip
    """(total, student tokens, sum of |difference|, sum of log p_S - log p_T, advantages)."""
    total, count, gaps, ratio, advantages = 0.0, 0, 0.0, 0.0, {}
    for b in range(len(student_logprob)):
        student, teacher = spans(student_chunk[b]), spans(teacher_chunk[b])
        for k in student:
            own = [t for t in student[k] if t > 0]
            theirs = [t for t in teacher.get(k, []) if t > 0]
            if not own or not theirs:
                continue
            logs = [max(float(student_logprob[b][t]), FLOOR) for t in own]
            whole = sum(logs)
            gap = sum(max(float(teacher_logprob[b][t]), FLOOR) for t in theirs) - whole
            for t, log in zip(own, logs, strict=True):
                prior = credit == "prior" and whole < -SURE
                credited = gap * (log / whole if prior else 1 / len(own))
                advantages[b, t] = credited
                far = abs(credited) > clip
                total += clip * (abs(credited) - clip / 2) if far else credited**2 / 2
            count += len(own)
            gaps, ratio = gaps + abs(gap), ratio - gap
    return total, count, gaps, ratio, advantages


def clipped(advantage, clip):
    return math.copysign(min(abs(advantage), clip), advantage)
