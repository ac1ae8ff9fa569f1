"""Orthogonal matching pursuit, one vector at a time, in float64."""

import numpy as np


def pursued(vector, atoms, k):
    """(chosen atoms in their order, weights): the largest correlation, then least squares anew."""
    vector, atoms = np.asarray(vector, np.float64), np.asarray(atoms, np.float64)
    units = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    taken, weights, left = [], np.zeros(0), vector
    for _ in range(k):
        correlation = np.abs(units @ left)
        correlation[taken] = -1
        taken.append(int(correlation.argmax()))
        weights = np.linalg.lstsq(atoms[taken].T, vector, rcond=None)[0]
        left = vector - weights @ atoms[taken]
    return taken, weights


def shared_pieces(one, other, vocabulary, shortest=3, longest=6):
    """The inner product of two tokens' unit vectors of weighted pieces, by sets and loops."""
    tables = [_pieces(token, shortest, longest) for token in vocabulary]
    count = {}
    for table in tables:
        for piece, times in table.items():
            count[piece] = count.get(piece, 0) + times

    def vector(token):
        found = _pieces(token, shortest, longest)
        weighed = {p: np.log(1 + len(vocabulary) / count[p]) for p in found}
        length = np.sqrt(sum(found[p] * weighed[p] ** 2 for p in found))
        return {p: found[p] * weighed[p] / length for p in found if count[p] > 1}

    left, right = vector(one), vector(other)
    return sum(left[p] * right[p] for p in left if p in right)


def _pieces(token, shortest, longest):
    """How often each piece occurs, apart for the token itself and its plain form."""
    found = {}
    for form, data in (("itself", token), ("plain", token.strip().lower())):
        symbols = ("<", *data, ">")
        for size in range(shortest, longest + 1):
            for at in range(len(symbols) - size + 1):
                key = form, symbols[at : at + size]
                found[key] = found.get(key, 0) + 1
    return found
