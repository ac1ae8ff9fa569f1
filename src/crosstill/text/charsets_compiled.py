"""The loops of `charsets`, compiled with numba. Imported on first use, as numba is slow to load."""

import numpy as np

from crosstill.kernels.jit import jit


@jit
def any_marked(codes, marked):
    """Whether any of the characters is marked; the table's last entry stands for all above."""
    top = np.uint32(marked.shape[0] - 1)
    found = np.uint8(0)
    for i in range(codes.shape[0]):
        found |= marked[min(codes[i], top)]
    return found > 0
