"""SimCT said again in float64, by loops, from the paper's candidates and scores."""

import math

from oracle.classical import kl, log_softmax


def simct(student, teacher, shared, student_spans, teacher_spans, *, divergence="kl",
          temperature=1.0):  # fmt: skip
    """(total, teacher's shared mass, spans).

    Spans are lists of a chunk's log-probabilities, or None where the chunk is no candidate.
    """
    total, mass, spans = 0.0, 0.0, 0
    for s, t, own, theirs in zip(student, teacher, student_spans, teacher_spans, strict=True):
        log_s, log_t = log_softmax(s), log_softmax(t)
        scores_s = [log_s[a] for a, _ in shared]
        scores_t = [log_t[b] for _, b in shared]
        mass += math.fsum(math.exp(x) for x in scores_t)
        if own is not None:
            scores_s.append(sum(own) / len(own))
            scores_t.append(sum(theirs) / len(theirs))
            spans += 1
        q, p = log_softmax(scores_s, temperature), log_softmax(scores_t, temperature)
        total += temperature**2 * (kl(p, q) if divergence == "kl" else kl(q, p))
    return total, mass, spans
