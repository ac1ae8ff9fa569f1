"""The loop of `class_sums`, compiled with numba. Imported on first use: numba is slow to load."""

from crosstill.kernels.jit import jit


@jit
def class_sums(rows, members, start, out):
    """Fill `out` [N, C] with the sums of `rows` [N, V] over each class's members."""
    for n in range(rows.shape[0]):
        for c in range(out.shape[1]):
            total = 0.0
            for k in range(start[c], start[c + 1]):
                total += rows[n, members[k]]
            out[n, c] = total


@jit
def class_gradient(probability, by_class, of, mean, out):
    """Fill `out` [N, V] with p (g - m): g of the column's class, m of the row."""
    for n in range(probability.shape[0]):
        for v in range(probability.shape[1]):
            out[n, v] = probability[n, v] * (by_class[n, of[v]] - mean[n])
