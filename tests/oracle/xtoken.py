"""X-Token said again in float64: the projection as a table, the losses by loops."""

import math

from oracle.classical import log_softmax

LEAST = 2e-38


def projection(shared, spelled, decay=0.1, max_pieces=4):
    """Student token -> {teacher token: weight}; `spelled` is a list of lists of teacher tokens."""
    exact = dict(shared)
    table = []
    for s, pieces in enumerate(spelled):
        row = {}
        if s in exact:
            row = {exact[s]: 1.0}
        elif 0 < len(pieces) <= max_pieces:
            for place, t in enumerate(pieces):
                row[t] = row.get(t, 0.0) + decay**place
        whole = math.fsum(row.values())
        table.append({t: w / whole for t, w in row.items()})
    return table


def relaxed(table, threshold=0.6):
    """Sorted pairs; the largest weight wins, of equal ones the lowest ids."""
    wanted = {}
    for s, row in enumerate(table):
        if not row:
            continue
        t, weight = min(row.items(), key=lambda entry: (-entry[1], entry[0]))
        if weight >= threshold and (t not in wanted or weight > wanted[t][1]):
            wanted[t] = (s, weight)
    return sorted((s, t) for t, (s, _) in wanted.items())


def xtoken(student, teacher, table, *, top_k=512, tail="pool", temperature=1.0):
    """(total, teacher's mass on reached tokens, on those that were compared)."""
    total, on_reached, on_compared = 0.0, 0.0, 0.0
    reached = {t for row in table for t in row}
    for s, t in zip(student, teacher, strict=True):
        q = [math.exp(x) for x in log_softmax(s, temperature)]
        p = [math.exp(x) for x in log_softmax(t, temperature)]
        carried = [0.0] * len(p)
        for token, row in enumerate(table):
            for other, weight in row.items():
                carried[other] += q[token] * weight
        top = sorted(reached, key=lambda v: -p[v])[:top_k]
        a, b = [p[v] for v in top], [max(carried[v], LEAST) for v in top]
        rest = math.fsum(carried[v] for v in range(len(p)) if v not in top)
        rest += math.fsum(x for x, row in zip(q, table, strict=True) if not row)
        if tail == "pool" and rest > 0:
            a.append(math.fsum(p[v] for v in range(len(p)) if v not in top))
            b.append(max(rest, LEAST))
        total += temperature**2 * divergence(a, b)
        on_reached += math.fsum(p[v] for v in reached)
        on_compared += math.fsum(p[v] for v in top)
    return total, on_reached, on_compared


def hybrid(student, teacher, pairs, *, matched_weight=1.0, unmatched_weight=1.0, temperature=1.0):
    """(total, teacher's mass on matched tokens)."""
    total, matched = 0.0, 0.0
    for s, t in zip(student, teacher, strict=True):
        q = [math.exp(x) for x in log_softmax(s, temperature)]
        p = [math.exp(x) for x in log_softmax(t, temperature)]
        left_q = sorted(
            (x for i, x in enumerate(q) if i not in {a for a, _ in pairs}), reverse=True
        )
        left_p = sorted(
            (x for i, x in enumerate(p) if i not in {b for _, b in pairs}), reverse=True
        )
        a = [p[b] for _, b in pairs] + ([math.fsum(left_p)] if left_p else [])
        b = [q[a] for a, _ in pairs] + ([math.fsum(left_q)] if left_q else [])
        ranks = max(len(left_p), len(left_q))
        left_p += [0.0] * (ranks - len(left_p))
        left_q += [0.0] * (ranks - len(left_q))
        distance = math.fsum(abs(x - y) for x, y in zip(left_p, left_q, strict=True))
        value = matched_weight * divergence(a, b) + unmatched_weight * distance
        total += temperature**2 * value
        matched += math.fsum(p[b] for _, b in pairs)
    return total, matched


def divergence(a, b):
    """KL of two lists of masses, each divided by its sum."""
    whole_a, whole_b = math.fsum(a), math.fsum(b)
    return math.fsum(
        x / whole_a * math.log((x / whole_a) / (y / whole_b))
        for x, y in zip(a, b, strict=True)
        if x > 0
    )
