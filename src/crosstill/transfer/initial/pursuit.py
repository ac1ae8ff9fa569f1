"""Orthogonal matching pursuit: vectors as weighted sums of a few atoms, many at once.

Axes: N vectors, S atoms, D their width, K atoms a vector, C candidates, B vectors of a batch.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

_NUMBERS = 2**25
"""How many numbers the largest temporary tensor may hold."""

_SKETCH = 256
"""Width of the random projection in which candidates are chosen."""

_QUIET_SECONDS = 3  # before the first sign of progress
_SIGN_SECONDS = 1

_DEPENDENT = 1e-2
"""Squared sine below which an atom counts as a sum of those already chosen.

Such atoms would get weights of hundreds with opposite signs, which mean nothing in another space.
"""

_NOTHING = 1e-6
"""Correlation below which nothing is left to explain."""

Columns = Callable[[Int64[Tensor, " B"]], Float[Tensor, "B C"]]


def sparse_sums(
    vectors: Float[Tensor, "N D"], atoms: Float[Tensor, "S D"], k: int, candidates: int = 0
) -> tuple[Int64[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Write each vector as a weighted sum of at most k atoms, chosen one after the other.

    Each step takes the atom whose direction has the largest correlation with what is left, and fits
    all weights anew by least squares. An atom that the chosen ones nearly span is passed over.
    Shows progress on standard error after a few seconds.

    Args:
        vectors: What shall be approximated.
        atoms: The dictionary; rows of zeros are never taken.
        k: Atoms a vector, at least 1.
        candidates: Choose among that many atoms of the largest correlation with the vector alone,
            estimated in a random projection; 0: among all, the pursuit itself.

    Returns:
        The chosen atoms, and their weights; 0 where a vector needs fewer than k.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal Matching Pursuit", 1993; the update by
    inner products follows Rubinstein, Zibulevsky and Elad, "Efficient Implementation of the K-SVD
    Algorithm using Batch Orthogonal Matching Pursuit", 2008.

    Example:
        >>> atoms = torch.eye(3)
        >>> ids, weights = sparse_sums(torch.tensor([[0.0, 5.0, -2.0]]), atoms, 2)
        >>> ids.tolist(), weights.tolist()
        ([[1, 2]], [[5.0, -2.0]])
    """
    k, sizes = min(k, len(atoms)), atoms.norm(dim=1)
    units = atoms / torch.where(sizes > 0, sizes, 1)[:, None]
    ids = torch.zeros(len(vectors), k, dtype=torch.long, device=atoms.device)
    weights = torch.zeros(len(vectors), k, dtype=atoms.dtype, device=atoms.device)
    shortlist = 0 < candidates < len(atoms)
    sketch = _projection(units) if shortlist else None
    width = max(candidates * max(atoms.shape[1], k), len(atoms)) if shortlist else k * len(atoms)
    step = max(1, _NUMBERS // max(width, 1))
    with tqdm(
        total=len(vectors),
        delay=_QUIET_SECONDS,
        mininterval=_SIGN_SECONDS,
        desc="matching pursuit",
        unit=" tokens",
    ) as shown:
        for start in range(0, len(vectors), step):
            part = slice(start, start + step)
            batch = vectors[part]
            if sketch is None:
                found, made = _pursued(batch @ units.T, lambda s: units[s] @ units.T, k)
            else:
                among = ((batch @ sketch[0]) @ sketch[1].T).abs().topk(candidates, dim=1).indices
                found, made = _pursued_among(batch, units[among], k)
                found = among.gather(1, found)
            ids[part], weights[part] = found, made
            shown.update(len(batch))
    return ids, weights / torch.where(sizes > 0, sizes, 1)[ids]


def _projection(units: Float[Tensor, "S D"]) -> tuple[Float[Tensor, "D P"], Float[Tensor, "S P"]]:
    """A random projection, the same each time, and the atoms in it."""
    generator = torch.Generator().manual_seed(0)
    width = min(_SKETCH, units.shape[1])
    matrix = torch.randn(units.shape[1], width, generator=generator, dtype=units.dtype)
    matrix = matrix.to(units.device)
    return matrix, units @ matrix


def _pursued_among(
    batch: Float[Tensor, "B D"], own: Float[Tensor, "B C D"], k: int
) -> tuple[Int64[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The pursuit where each vector has atoms of its own."""
    rows = torch.arange(len(own), device=own.device)
    return _pursued(
        (own @ batch[:, :, None])[:, :, 0], lambda s: (own @ own[rows, s, :, None])[:, :, 0], k
    )


def _pursued(
    left: Float[Tensor, "B C"], columns: Columns, k: int
) -> tuple[Int64[Tensor, "B K"], Float[Tensor, "B K"]]:
    """The pursuit by inner products alone.

    Args:
        left: Inner products of unit atoms and vectors.
        columns: The inner products of all atoms with one of them a vector.
        k: Steps.
    """
    batch, count = left.shape
    rows = torch.arange(batch, device=left.device)
    free = torch.ones_like(left)  # squared length of each atom outside the chosen ones' span
    basis = left.new_zeros(batch, k, count)  # inner products of atoms and orthonormal directions
    factor, along = left.new_zeros(batch, k, k), left.new_zeros(batch, k)
    ids = torch.zeros(batch, k, dtype=torch.long, device=left.device)
    for t in range(k):
        largest, ids[:, t] = left.abs().masked_fill(free <= _DEPENDENT, -1).max(1)
        taken, going = ids[:, t], largest > _NOTHING
        own = basis[rows, :t, taken]
        length = (1 - own.square().sum(1)).clamp(min=_DEPENDENT).sqrt()
        direction = columns(taken) - (own[:, None] @ basis[:, :t])[:, 0]
        basis[:, t] = torch.where(going[:, None], direction / length[:, None], 0)
        factor[:, t, :t] = torch.where(going[:, None], own, 0)
        factor[:, t, t] = torch.where(going, length, 1)
        along[:, t] = torch.where(going, left[rows, taken] / length, 0)
        left = left - along[:, t, None] * basis[:, t]
        free = free - basis[:, t].square()
        free[rows, taken] = -1
    weights = torch.linalg.solve_triangular(factor.mT, along[:, :, None], upper=True)
    return ids, weights[:, :, 0]
