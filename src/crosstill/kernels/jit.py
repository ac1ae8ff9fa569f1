"""How the loops of this package are compiled."""

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable) -> Any:
    """Compiles a loop that needs no interpreter lock, and keeps what was compiled on disk."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder to keep compiled code in: compile again in each process
        return njit(nogil=True)(function)
