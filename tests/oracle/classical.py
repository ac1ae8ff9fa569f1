"""The classical divergences said again in float64, by loops, from their papers' formulas."""

import math

FLOOR = -1e4


def log_softmax(logits, temperature=1.0):
    """Of one row; values below FLOOR count as FLOOR, a row of nothing but -inf as uniform."""
    logits = [float(x) / temperature for x in logits]
    top = max(logits)
    if top == -math.inf:
        return [-math.log(len(logits))] * len(logits)
    norm = math.log(math.fsum(math.exp(x - top) for x in logits))
    return [max(x - top - norm, FLOOR) for x in logits]


def kl(a, b):
    """Of two lists of log-probabilities."""
    return math.fsum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True))


def mixture(a, b, share):
    """log(share * a + (1 - share) * b), where neither is below the smallest float."""
    return [
        math.log(share * math.exp(x) + (1 - share) * math.exp(y)) for x, y in zip(a, b, strict=True)
    ]


def forward_kl(p, q):
    return kl(p, q)


def reverse_kl(p, q):
    return kl(q, p)


def jsd(p, q, beta=0.5, scale="continuous"):
    if beta in (0.0, 1.0):
        return kl(p, q) if beta == 0.0 else kl(q, p)
    m = mixture(p, q, beta)
    value = beta * kl(p, m) + (1 - beta) * kl(q, m)
    return value / (beta * (1 - beta)) if scale == "continuous" else value


def skewed_kl(p, q, alpha=0.1):
    return kl(p, mixture(p, q, alpha))


def skewed_reverse_kl(p, q, alpha=0.1):
    return kl(q, mixture(q, p, alpha))


def adaptive_kl(p, q, mu=0.5, head_size=1024):
    order = sorted(range(len(p)), key=lambda v: -p[v])
    head, mass = [], 0.0
    for rank, v in enumerate(order[:head_size]):
        mass += math.exp(p[v])
        if rank == 0 or mass <= mu:
            head.append(v)
    gap = [abs(math.exp(x) - math.exp(y)) for x, y in zip(p, q, strict=True)]
    of_head, whole = math.fsum(gap[v] for v in head), math.fsum(gap)
    share = of_head / whole if whole > 0 else 0.5
    return share * kl(p, q) + (1 - share) * kl(q, p)


def total_variation(p, q):
    return 0.5 * math.fsum(abs(math.exp(x) - math.exp(y)) for x, y in zip(p, q, strict=True))


def dac_kl(p, q, target, lower=0.0, upper=0.95, top_k=1024, tail="pool"):
    """The value, and the number of tokens that were compared."""
    order = sorted(range(len(p)), key=lambda v: -p[v])
    dense, before = {target}, 0.0
    for v in order[:top_k]:
        if lower <= before < upper:
            dense.add(v)
        before += math.exp(p[v])
    classes = [[v] for v in sorted(dense)]
    rest = [v for v in range(len(p)) if v not in dense]
    if tail == "pool" and rest:
        classes.append(rest)
    a, b = (grouped(one, classes) for one in (p, q))
    return math.fsum(x * math.log(x / y) for x, y in zip(a, b, strict=True)), len(dense)


def grouped(logs, classes):
    """Probabilities of classes, adding up to 1."""
    mass = [math.fsum(math.exp(logs[v]) for v in group) for group in classes]
    return [x / math.fsum(mass) for x in mass]


def swapped_kl(student, teacher, target, student_weight=1.0, temperature=1.0):
    """From raw logits; the value, and whether the teacher was set right."""
    q = log_softmax(student, temperature)
    right = set_right(teacher, target)
    value = kl(log_softmax(right, temperature), q)
    own = set_right(student, target)
    value += student_weight * kl(log_softmax(own, temperature), q)
    return value, list(right) != [float(x) for x in teacher]


def set_right(logits, target):
    """With the target's logit and the largest one exchanged."""
    logits = [float(x) for x in logits]
    best = logits.index(max(logits))
    logits[best], logits[target] = logits[target], logits[best]
    return logits
