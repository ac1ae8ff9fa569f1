"""Time warping over tokens said again by plain loops, from the specification."""

import math


def levenshtein(a, b):
    """Insertions, deletions and replacements from one sequence to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def entropy(logits):
    """Of the softmax of one row of numbers, in nats."""
    top = max(logits)
    shares = [math.exp(x - top) for x in logits]
    total = math.fsum(shares)
    return -math.fsum(s / total * math.log(s / total) for s in shares if s > 0)


def weights(entropies, integer=False):
    """3 sigmoid(4 x - 2) + 3, x the entropy scaled to [0, 1]; equal entropies count as 0."""
    low, high = min(entropies), max(entropies)
    found = []
    for h in entropies:
        x = 0.0 if high - low <= 1e-6 else (h - low) / (high - low)
        w = 3.0 / (1.0 + math.exp(-(4.0 * x - 2.0))) + 3.0
        found.append(float(int(w)) if integer else w)
    return found


def path(teacher, student, teacher_weight, student_weight, allowed=None):
    """([(teacher token, student token), ...], cost); `allowed(i, j)` says what may be paired."""
    n, m = len(teacher), len(student)
    total = [[math.inf] * (m + 1) for _ in range(n + 1)]
    total[0][0] = 0.0
    known = {}
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            if allowed is not None and not allowed(i - 1, j - 1):
                continue
            pair = teacher[i - 1], student[j - 1]
            if pair not in known:
                known[pair] = levenshtein(*pair)
            cost = known[pair] * teacher_weight[i - 1] * student_weight[j - 1]
            total[i][j] = cost + min(total[i - 1][j - 1], total[i - 1][j], total[i][j - 1])
    steps, i, j = [], n, m
    while True:
        steps.append((i - 1, j - 1))
        if (i, j) == (1, 1):
            break
        moves = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        best = min(total[a][b] for a, b in moves)
        i, j = next(move for move in moves if total[move[0]][move[1]] == best)
    return steps[::-1], total[n][m]


def groups(steps):
    """([{teacher token: weight}, ...], [{student token: weight}, ...]) of a path."""
    n, m = steps[-1][0] + 1, steps[-1][1] + 1
    of_teacher = [sorted({j for i, j in steps if i == k}) for k in range(n)]
    of_student = [sorted({i for i, j in steps if j == k}) for k in range(m)]
    different = []
    for tokens in of_teacher:
        if tokens not in different:
            different.append(tokens)
    teacher_side, student_side = [], []
    for tokens in different:
        shares = {}
        for j in tokens:
            for i in of_student[j]:
                shares[i] = shares.get(i, 0.0) + 1.0 / len(of_student[j]) / len(tokens)
        teacher_side.append(shares)
        student_side.append({j: 1.0 / len(tokens) for j in tokens})
    return teacher_side, student_side
