"""GOLD said again in float64: a chunk's distribution as a dictionary, compared entry by entry."""

import math

from oracle.uld import probabilities, sorted_distance

TINY = math.exp(-1e4)


def gold(student, teacher, shared, *, merge, beta, tail, weights=None):
    """(total, matched, unmatched, teacher's unmatched mass) over the chunks.

    `student` and `teacher` are lists of chunks; a chunk is (rows of probabilities, ids): row i is
    the distribution that predicts ids[i], and one more row follows for the merge "observed".
    `weights` of None is by share.
    """
    matched = unmatched = mass = 0.0
    size = len(teacher[0][0][-1])
    pairs = {s: t for s, t in shared}
    for one, two in zip(student, teacher, strict=True):
        p, q = merged(*one, merge), merged(*two, merge)
        columns, left = split(p, q, one[1], two[1], pairs)
        a, b = [x for x, _ in columns], [y for _, y in columns]
        unmatched_p, unmatched_q = left
        if tail == "pooled":
            a, b = [*a, 1 - sum(a)], [*b, 1 - sum(b)]
        elif tail == "renormalised":
            a, b = [x / sum(a) for x in a], [y / sum(b) for y in b]
        else:
            a, b = [max(x, 1e-8) for x in a], [max(y, 1e-8) for y in b]
        matched += jsd(a, b, beta, scaled=tail != "trl")
        if tail != "trl" or (unmatched_p and unmatched_q):
            unmatched += sorted_distance(unmatched_p, unmatched_q)
        mass += 1 - sum(y for _, y in columns)
    share = len(pairs) / size
    w = weights or (share, 1 - share)
    return w[0] * matched + w[1] * unmatched, matched, unmatched, mass


def plain(student, teacher, merge):
    """Total without shared tokens: all entries by rank."""
    return sum(
        sorted_distance(list(merged(*one, merge).values()), list(merged(*two, merge).values()))
        for one, two in zip(student, teacher, strict=True)
    )


def merged(rows, ids, merge):
    """{token or "chunk": probability}."""
    if merge == "observed":  # every row is taken one too late
        rows = rows[1:]
    rows = [list(map(float, row)) for row in rows]
    scores = [row[i] for row, i in zip(rows, ids, strict=False)]
    if merge == "observed":
        scale = math.prod(max(x, 1e-8) for x in scores[1:])
        return {v: x * scale for v, x in enumerate(rows[0])}
    if merge == "bayesian":
        scale = math.prod(max(x, 1e-8) for x in scores[:-1])
        return {v: x * scale for v, x in enumerate(rows[len(ids) - 1])}
    out = dict(enumerate(rows[0]))
    out["chunk"] = math.prod(scores)
    out[ids[0]] -= out["chunk"]
    return out


def split(p, q, student_ids, teacher_ids, pairs):
    """(pairs of shared probabilities, (student's others, teacher's others))."""
    p, q = dict(p), dict(q)
    backwards = {t: s for s, t in pairs.items()}
    if "chunk" in p:
        # one token that spells the whole chunk is the chunk, on either side
        if len(student_ids) == 1 and student_ids[0] in pairs:
            q["chunk"] += q[pairs[student_ids[0]]]
            q[pairs[student_ids[0]]] = p[student_ids[0]] = 0.0
        if len(teacher_ids) == 1 and teacher_ids[0] in backwards:
            p["chunk"] += p[backwards[teacher_ids[0]]]
            p[backwards[teacher_ids[0]]] = q[teacher_ids[0]] = 0.0
    columns = [(p[s], q[t]) for s, t in pairs.items()]
    if "chunk" in p:
        columns.append((p["chunk"], q["chunk"]))
    others = (
        [x for v, x in p.items() if v not in pairs and v != "chunk"],
        [y for v, y in q.items() if v not in backwards and v != "chunk"],
    )
    return columns, others


def jsd(s, t, beta, *, scaled):
    """Generalised Jensen-Shannon divergence of two lists of masses."""
    if beta == 0:
        return kl(t, s)
    if beta == 1:
        return kl(s, t)
    m = [beta * y + (1 - beta) * x for x, y in zip(s, t, strict=True)]
    value = beta * kl(t, m) + (1 - beta) * kl(s, m)
    return value / (beta * (1 - beta)) if scaled else value


def kl(p, q):
    """Sum of p log(p / q); 0 where p is 0."""
    return sum(
        x * (math.log(x) - math.log(max(y, 1e-300))) for x, y in zip(p, q, strict=True) if x > 0
    )


__all__ = ["gold", "jsd", "kl", "merged", "plain", "probabilities", "split"]
