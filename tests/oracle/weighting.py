"""The weightings said again in float64, vector by vector, from the papers."""

import math

import numpy as np


def gradmag(gradients):
    """Weights of objectives from their gradients in the last block; arXiv:2503.20083."""
    inverse = [1.0 / (math.sqrt(sum(x * x for x in g)) + 1e-8) for g in gradients]
    return [x / sum(inverse) for x in inverse]


def gradnorm_loss(weights, norms, losses, first, alpha, targets=None):
    """Equation 2 of arXiv:1711.02257; `targets` are the constants, once they are known."""
    if targets is None:
        targets = gradnorm_targets(weights, norms, losses, first, alpha)
    return sum(abs(w * n - t) for w, n, t in zip(weights, norms, targets, strict=True))


def gradnorm_targets(weights, norms, losses, first, alpha):
    """The mean length times the relative inverse training rate to the power alpha."""
    shares = [now / then for now, then in zip(losses, first, strict=True)]
    mean_share = sum(shares) / len(shares)
    mean = sum(w * n for w, n in zip(weights, norms, strict=True)) / len(weights)
    return [mean * (share / mean_share) ** alpha for share in shares]


def pcgrad(gradients, orders):
    """Algorithm 1 of arXiv:2001.06782, on the vectors themselves."""
    projected = []
    for i, order in enumerate(orders):
        g = np.array(gradients[i], np.float64)
        for j in order:
            other = np.array(gradients[j], np.float64)
            dot = float(g @ other)
            if dot < 0:
                g = g - dot / float(other @ other) * other
        projected.append(g)
    return np.sum(projected, axis=0)


def uncertainty_loss(losses, log_variances):
    """Equation 10 of arXiv:1705.07115: L / sigma^2 + log sigma, summed."""
    total = 0.0
    for loss, s in zip(losses, log_variances, strict=True):
        sigma = math.sqrt(math.exp(s))
        total += loss / sigma**2 + math.log(sigma)
    return total


def schedule(shape, start, end, over, step, steps):
    """A weight at a step: the first step has `start`, the last one of the span has `end`."""
    last = over * steps - 1
    share = 1.0 if last <= 0 and step > 0 else min(1.0, step / max(last, 1.0))
    if shape == "constant":
        return start
    if shape == "linear":
        return start + (end - start) * share
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
