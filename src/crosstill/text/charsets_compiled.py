"""The loops of `charsets`, compiled with numba. Imported on first use, as numba is slow to load."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def _jit(function: Callable) -> Any:
    try:
        return njit(cache=True)(function)
    except RuntimeError:  # no folder to keep compiled code in: compile again in each process
        return njit(function)


@_jit
def any_marked(codes, marked):
    """Whether any of the characters is marked; the table's last entry stands for all above."""
    top = np.uint32(marked.shape[0] - 1)
    found = np.uint8(0)
    for i in range(codes.shape[0]):
        found |= marked[min(codes[i], top)]
    return found > 0
