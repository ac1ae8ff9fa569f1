"""What compiled loops over rows share: whether they can run at all, and rows among threads."""

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache


@cache
def can_import(module: str) -> bool:
    """Whether a compiled module can be used: numba is there for this Python and platform."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def share_rows(run: Callable[[slice], object], count: int, threads: int) -> None:
    """Run a loop over all rows, each thread on its share of them.

    Args:
        run: works on a slice of the rows, and lets go of the interpreter's lock meanwhile.
        count: rows in all.
        threads: how many share them.

    Example:
        >>> seen = []
        >>> share_rows(seen.append, 5, 1)
        >>> seen
        [slice(0, 5, None)]
    """
    share = -(-count // max(threads, 1)) or 1
    jobs = [slice(start, start + share) for start in range(0, count, share)]
    if len(jobs) < 2:
        for job in jobs:
            run(job)
        return
    # A pool for each call: one that outlived a fork would wait for threads that are gone.
    with ThreadPoolExecutor(len(jobs)) as pool:
        list(pool.map(run, jobs))
