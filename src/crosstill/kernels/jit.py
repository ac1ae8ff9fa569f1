"""How the loops of this package are compiled."""

from collections.abc import Callable
from typing import Any

from numba import njit


def jit(function: Callable, boundscheck: bool = False, fused: bool = False) -> Any:
    """Compiles a loop that needs no interpreter lock, and keeps what was compiled on disk.

    Args:
        function: The loop.
        boundscheck: Whether an index out of range is an IndexError rather than memory of others.
        fused: Whether a product may be added without rounding it first, where the processor can.
    """
    options: dict[str, Any] = {"nogil": True, "boundscheck": boundscheck}
    if fused:
        options["fastmath"] = {"contract"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep compiled code in: compile again in each process
        return njit(**options)(function)
