"""Mixtures of distributions in plain loops, float64."""

import math


def softmax(logits):
    """Of one row."""
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    return [weight / sum(weights) for weight in weights]


def mean_of_probabilities(rows, weights):
    """sum_i w_i p_i of one row of logits a member."""
    members = [softmax(row) for row in rows]
    return [
        sum(w * p[v] for w, p in zip(weights, members, strict=True)) for v in range(len(rows[0]))
    ]


def mean_of_log_probabilities(rows, weights):
    """prod_i p_i^w_i, divided by its sum."""
    members = [softmax(row) for row in rows]
    products = [
        math.prod(p[v] ** w for w, p in zip(weights, members, strict=True))
        for v in range(len(rows[0]))
    ]
    return [product / sum(products) for product in products]


def among(probabilities, ids):
    """A distribution given that one of some ids comes."""
    return [probabilities[v] / sum(probabilities[u] for u in ids) for v in ids]


def carried(probabilities, token_map, size):
    """Every probability at the id its token is mapped to."""
    found = [0.0] * size
    for v, p in enumerate(probabilities):
        if token_map[v] >= 0:
            found[token_map[v]] += p
    return found


def byte_prefix(next_token, tokens, prefix, start=()):
    """The probability that a text begins with some bytes, over all its tokenizations.

    The sum over the covers of the prefix: sequences of tokens whose bytes begin with it, the last
    token needed to reach its end.

    Args:
        next_token: from a tuple of ids to the probabilities of the next one.
        tokens: the bytes of every id; empty for special ones.
        prefix: the bytes.
        start: ids of what came before.
    """
    if not prefix:
        return 1.0
    total = 0.0
    probabilities = next_token(tuple(start))
    for v, data in enumerate(tokens):
        if data and data.startswith(prefix):
            total += probabilities[v]
        elif data and prefix.startswith(data):
            rest = byte_prefix(next_token, tokens, prefix[len(data) :], (*start, v))
            total += probabilities[v] * rest
    return total
