"""How much each objective counts in a step: GradMag, GradNorm, PCGrad, uncertainty weighting.

Pure functions of a few numbers for each objective. n objectives; axes: n.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

WEIGHTINGS = ("fixed", "gradmag", "gradnorm", "pcgrad", "uncertainty")

EPSILON = 1e-8
# A gradient this much smaller than the largest one is what rounding leaves of nothing.
ABSENT = 1e-6


def gradmag_weights(norms: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""Compute the weights under which every objective's gradient has the same length.

    :math:`w_i = 1 / (\|G_i\| + 10^{-8})`, divided by their sum.

    Args:
        norms: length of each objective's gradient with respect to the last block's weights.

    Returns:
        Weights that sum to 1, float64, without a graph.

    Numerics: an objective without a gradient there (below a millionth of the longest) would get
        all the weight, and stop the others. It is counted as if its gradient were the longest:
        it gets the least weight.

    Source: Minixhofer, Vulić, Ponti, arXiv:2503.20083, "GradMag", in the form that keeps the
        weights' sum. Oracle: tests/oracle/weighting.py.

    Example:
        >>> gradmag_weights(torch.tensor([3.0, 1.0]))
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    norms = norms.detach().double()
    longest = norms.max()
    counted = torch.where(norms <= ABSENT * longest, longest, norms)
    weights = 1.0 / (counted + EPSILON)
    return weights / weights.sum()


def gradnorm_gradient(
    weights: Float[Tensor, " n"],
    norms: Float[Tensor, " n"],
    losses: Float[Tensor, " n"],
    first_losses: Float[Tensor, " n"],
    alpha: float,
) -> Float[Tensor, " n"]:
    r"""Compute the derivative of GradNorm's loss with respect to its weights.

    The loss is :math:`\sum_i |w_i \|G_i\| - \bar g \, r_i^\alpha|`, where :math:`\bar g` is the
    mean of :math:`w_i \|G_i\|` and :math:`r_i` is objective i's share of its first loss, divided
    by the mean of these shares; :math:`\bar g` and :math:`r_i` count as constants.

    Args:
        weights: the weights as they are, above 0.
        norms: lengths of the gradients of the unweighted objectives in the last block.
        losses: the objectives' values in this step.
        first_losses: those in the run's first step.
        alpha: how strongly objectives that learn slower are favoured; 0 makes all lengths equal.

    Returns:
        float64, without a graph.

    Numerics: a first loss of 0 gives its objective the share 1; losses below 0 count as 0.

    Source: Chen et al., arXiv:1711.02257, equation 2 and algorithm 1.
        Oracle: tests/oracle/weighting.py.

    Example:
        >>> two = torch.ones(2)
        >>> gradnorm_gradient(two, torch.tensor([3.0, 1.0]), two, two, alpha=1.5)
        tensor([ 3., -1.], dtype=torch.float64)
    """
    lengths = weights.detach().double() * norms.detach().double()
    losses, first = losses.detach().double().clamp(min=0.0), first_losses.detach().double()
    share = torch.where(first > 0.0, losses / first.clamp(min=EPSILON), 1.0)
    rate = share / share.mean().clamp(min=EPSILON)
    target = lengths.mean() * rate**alpha
    return torch.sign(lengths - target) * norms.detach().double()


def pcgrad_weights(
    products: Float[Tensor, "n n"], orders: Sequence[Sequence[int]]
) -> Float[Tensor, " n"]:
    r"""Compute the weights that give the sum of the projected gradients.

    Where a gradient points against another, :math:`g_i \cdot g_j < 0`, its part along
    :math:`g_j` is taken away, one j after the other. What is left is a sum of the given
    gradients, so their products with each other decide all.

    Args:
        products: :math:`g_i \cdot g_j` of the whole gradients.
        orders: for each i, the other objectives in the order in which i meets them.

    Returns:
        a, float64 on the CPU: the sum of the projected gradients is
        :math:`\sum_i a_i g_i`.

    Numerics: a gradient of length 0 takes nothing away from others.

    Source: Yu et al., arXiv:2001.06782, algorithm 1. Oracle: tests/oracle/weighting.py.

    Example:
        >>> pcgrad_weights(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), [[1], [0]])
        tensor([1.5000, 1.5000], dtype=torch.float64)
    """
    products = products.detach().double().cpu()
    coefficients = torch.eye(len(products), dtype=torch.float64)
    for i, others in enumerate(orders):
        for j in others:
            along = coefficients[i] @ products[:, j]
            if along < 0.0 and products[j, j] > 0.0:
                coefficients[i, j] -= along / products[j, j]
    return coefficients.sum(0)


def uncertainty_gradient(
    log_variances: Float[Tensor, " n"], losses: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    r"""Compute the derivative of the uncertainty loss with respect to the log-variances.

    The loss is :math:`\sum_i L_i / \sigma_i^2 + \log \sigma_i`; with :math:`s_i = \log \sigma_i^2`
    the derivative is :math:`1/2 - L_i e^{-s_i}`. The model is trained with the weights
    :math:`e^{-s_i}`.

    Args:
        log_variances: learned; 0 gives weight 1.
        losses: the objectives' means over the step, nats.

    Returns:
        float64, without a graph.

    Source: Kendall, Gal, Cipolla, arXiv:1705.07115, equation 10, in its form for likelihoods.
        Oracle: tests/oracle/weighting.py.

    Example:
        >>> uncertainty_gradient(torch.zeros(2), torch.tensor([2.0, 0.5]))
        tensor([-1.5000,  0.0000], dtype=torch.float64)
    """
    return 0.5 - losses.detach().double() * torch.exp(-log_variances.detach().double())
