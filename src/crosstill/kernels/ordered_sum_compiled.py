"""The loop of `ordered_sum`, compiled with numba. Imported on first use: numba is slow to load."""

from crosstill.kernels.jit import jit


@jit
def ordered_sum(rows, order, out):
    """Fill `out` [N, K + 1] with the sums of `rows` [N, V] in the order [K]."""
    for n in range(rows.shape[0]):
        total = 0.0
        out[n, 0] = 0.0
        for k in range(order.shape[0]):
            total += rows[n, order[k]]
            out[n, k + 1] = total


@jit
def span_sums(cumulative, row, bounds, scale, out):
    """Fill `out` [S, C] with the sums between neighbouring bounds [C + 1] of some rows, scaled."""
    for s in range(row.shape[0]):
        for c in range(bounds.shape[0] - 1):
            total = cumulative[row[s], bounds[c + 1]] - cumulative[row[s], bounds[c]]
            out[s, c] = total * scale[s]
