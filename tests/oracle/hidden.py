"""Distances of hidden states said again in float64, by loops over single numbers."""

import math


def hidden(student, teacher, distance):
    """(total, count) over pairs of states, given as lists of lists."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        size = len(s)
        square = sum((float(a) - float(b)) ** 2 for a, b in zip(s, t, strict=True))
        ss, tt = sum(float(a) ** 2 for a in s), sum(float(b) ** 2 for b in t)
        if distance == "mse":
            total += square / size
        elif distance == "normalised_mse":
            total += (square / size) / (tt / size + 1e-8)
        else:
            dot = sum(float(a) * float(b) for a, b in zip(s, t, strict=True))
            roots = math.sqrt(ss / size + 1e-8) * math.sqrt(tt / size + 1e-8)
            total += 1.0 - dot / size / roots
    return total, len(student)


def chunk_ends(student_chunk, teacher_chunk):
    """(sequence, student position, teacher position) of every chunk's last tokens.

    Chunks that begin at position 0 of a side are left out.
    """
    found = []
    for b, (mine, theirs) in enumerate(zip(student_chunk, teacher_chunk, strict=True)):
        for k in sorted({int(k) for k in mine if k >= 0}):
            s = [t for t, chunk in enumerate(mine) if chunk == k]
            t = [t for t, chunk in enumerate(theirs) if chunk == k]
            if s and t and s[0] > 0 and t[0] > 0:
                found.append((b, s[-1], t[-1]))
    return found
