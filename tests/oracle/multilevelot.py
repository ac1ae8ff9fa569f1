"""MultiLevelOT said again in float64, by loops over single numbers."""

import math

from oracle.uld import probabilities


def scaled(row):
    """Probabilities of a row of logits divided by its standard deviation plus 1e-4."""
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / max(len(row) - 1, 1))
    return probabilities([x / (deviation + 1e-4) for x in row])


def ranking(rows, k):
    """The k columns with the largest sums."""
    sums = [sum(column) for column in zip(*rows, strict=True)]
    return sorted(range(len(sums)), key=lambda v: -sums[v])[:k]


def transport(student, teacher, regularisation, rounds):
    """<P, C> after alternating normalisations, rows first."""
    cost = [[sum(abs(x - y) for x, y in zip(a, b, strict=True)) for b in teacher] for a in student]
    plan = [[math.exp(-c / regularisation) for c in row] for row in cost]
    for _ in range(rounds):
        plan = [[x / sum(row) for x in row] for row in plan]
        columns = [sum(column) for column in zip(*plan, strict=True)]
        plan = [[x / c for x, c in zip(row, columns, strict=True)] for row in plan]
    return sum(
        p * c
        for row, costs in zip(plan, cost, strict=True)
        for p, c in zip(row, costs, strict=True)
    )


def parts(student, teacher, *, top_k, regularisation=0.1, rounds=10):
    """(absolute, logarithmic, transport, rows) summed over sequences of rows of logits."""
    sums, count = [0.0, 0.0, 0.0], 0
    for one, two in zip(student, teacher, strict=True):
        n = min(len(one), len(two))
        if n == 0:
            continue
        p, q = [scaled(row) for row in one[:n]], [scaled(row) for row in two[:n]]
        k = min(top_k, len(p[0]), len(q[0]))
        a, b = ranking(p, k), ranking(q, k)
        s = [[row[v] for v in a] for row in p]
        t = [[row[v] for v in b] for row in q]
        sums[0] += sum(abs(x - y) for r, u in zip(s, t, strict=True)
                       for x, y in zip(r, u, strict=True))  # fmt: skip
        s = [[x / sum(row) for x in row] for row in s]
        t = [[x / sum(row) for x in row] for row in t]
        sums[1] += sum(y * math.log(y / x) for r, u in zip(s, t, strict=True)
                       for x, y in zip(r, u, strict=True))  # fmt: skip
        sums[2] += transport(s, t, regularisation, rounds)
        count += n
    return (*sums, count)


def compatible(student, teacher, *, top_k, regularisation=0.1, rounds=10):
    """The three parts as the released code computes and divides them."""
    p = [[scaled(row) for row in rows] for rows in student]
    q = [[scaled(row) for row in rows] for rows in teacher]
    k = min(top_k, len(p[0][0]), len(q[0][0]))
    a = ranking([row for rows in p for row in rows], k)
    b = ranking([row for rows in q for row in rows], k)
    longest = max(len(rows) for rows in [*p, *q])
    sums = [0.0, 0.0, 0.0]
    for one, two in zip(p, q, strict=True):
        s = [[row[v] for v in a] for row in one]
        t = [[row[v] for v in b] for row in two]
        n = min(len(s), len(t))
        sums[0] += sum(abs(x - y) for r, u in zip(s[:n], t[:n], strict=True)
                       for x, y in zip(r, u, strict=True)) / n / len(p)  # fmt: skip
        s += [[0.0] * k] * (longest - len(s))
        t += [[0.0] * k] * (longest - len(t))
        sums[1] += sum(
            -x * math.log(y)
            for r, u in zip(s, t, strict=True)
            for x, y in zip(probabilities(r), probabilities(u), strict=True)
        ) / longest / len(p)  # fmt: skip
        halves = [[probabilities(row, 2.0) for row in side] for side in (s, t)]
        sums[2] += 0.001 * transport(*halves, regularisation, rounds)
    return tuple(sums)
