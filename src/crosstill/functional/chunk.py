"""From tokens to chunks: sums, last positions, and merging, by scattering along the row.

Axes: B sequences, T tokens (Ts student, Tt teacher), C chunks. A chunk index is -1 for a token
outside every chunk; indices count from 0 in each row and are smaller than C.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.functional.numerics import FLOOR, accumulation_dtype


def last_positions(chunk: Int64[Tensor, "B T"], num_chunks: int) -> Int64[Tensor, "B C"]:
    """Find the position of each chunk's last token; -1 for a chunk without tokens.

    Example:
        >>> last_positions(torch.tensor([[0, 0, -1, 1]]), 3)
        tensor([[ 1,  3, -1]])
    """
    position = torch.arange(chunk.shape[1], device=chunk.device).expand_as(chunk)
    position = torch.where(chunk >= 0, position, -1)
    none = chunk.new_full((chunk.shape[0], num_chunks), -1)
    return none.scatter_reduce(1, chunk.clamp(min=0), position, "amax")


def scored_chunks(chunk: Int64[Tensor, "B T"], num_chunks: int) -> Bool[Tensor, "B C"]:
    """Tell which chunks hold at least one token with a likelihood.

    The token at position 0 has none: nothing stands before it.

    Example:
        >>> scored_chunks(torch.tensor([[0, 1, 1, -1]]), 3)
        tensor([[False,  True, False]])
    """
    return last_positions(chunk, num_chunks) > 0


def merge_chunks(
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    teacher_boundary: Float[Tensor, "B Tt"],
    threshold: float,
) -> tuple[Int64[Tensor, "B Ts"], Int64[Tensor, "B Tt"]]:
    r"""Join chunks until the teacher expects a boundary after their last token.

    The end of chunk k is accepted if :math:`P_T(\text{boundary after } k) > \gamma`, strictly.
    Chunk k then belongs to the merged chunk :math:`d_k = \sum_{k' < k} [k' \text{ accepted}]`.
    What follows the last accepted end stays as a chunk of its own.

    Args:
        student_chunk: chunk of each student token, -1 outside.
        teacher_chunk: chunk of each teacher token, -1 outside.
        teacher_boundary: nats, log of the boundary mass after each teacher token.
        threshold: gamma, a probability in [0, 1).

    Returns:
        The merged indices of both sides, -1 where they were -1.

    Source: arXiv:2503.20083, section 3 (the constraint c), on the teacher's probability only.

    Example:
        >>> chunk = torch.tensor([[0, 1, 2]])
        >>> merge_chunks(chunk, chunk, torch.tensor([[0.05, 0.9, 0.05]]).log(), 0.1)[0]
        tensor([[0, 0, 1]])
    """
    num_chunks = max(student_chunk.shape[1], teacher_chunk.shape[1])
    end = last_positions(teacher_chunk, num_chunks)
    mass = teacher_boundary.detach().to(accumulation_dtype(teacher_boundary)).exp()
    accepted = (_read(mass, end) > threshold) & (end >= 0)
    merged = accepted.cumsum(1) - accepted.long()
    return _relabel(student_chunk, merged), _relabel(teacher_chunk, merged)


def chunk_loglikelihood(
    token_logprob: Float[Tensor, "B T"],
    chunk: Int64[Tensor, "B T"],
    num_chunks: int,
    boundary: Float[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B C"]:
    r"""Sum the log-probabilities of each chunk's tokens, and of the boundary after its end.

    .. math:: \log p(c_k) = \sum_{t \in c_k, t \ge 1} \log p(x_t \mid x_{<t})
              + \log P(\text{boundary} \mid x_{\le \text{end of } k})

    Args:
        token_logprob: nats; entry t scores token t.
        chunk: chunk of each token, -1 outside.
        num_chunks: C, larger than every index.
        boundary: nats, log-mass of boundary tokens after each token; None leaves the term out.

    Returns:
        Nats, at most 0, float32 (float64 if an input is). A chunk without tokens has 0.0.

    Numerics: values outside every chunk, at position 0, and boundaries elsewhere than at a
    chunk's end are never read, so they may be `-inf` or NaN. Values below `FLOOR` count as
    `FLOOR` and get no gradient.

    Source: arXiv:2503.20083, equations for p(x, i:j) and its debiased form.

    Example:
        >>> logprob = torch.tensor([[0.0, -1.0, -2.0, -4.0]])
        >>> chunk_loglikelihood(logprob, torch.tensor([[-1, 0, 0, 1]]), 2)
        tensor([[-3., -4.]])
    """
    scored = chunk >= 0
    scored[:, :1] = False
    # Filled before the sum: -inf times 0 would be NaN, in the value and in the gradient.
    kept = token_logprob.to(accumulation_dtype(token_logprob)).masked_fill(~scored, 0.0)
    total = kept.new_zeros(chunk.shape[0], num_chunks)
    total = total.scatter_add(1, chunk.clamp(min=0), kept.clamp(min=FLOOR))
    if boundary is not None:
        end = last_positions(chunk, num_chunks)
        after = _read(boundary.to(accumulation_dtype(boundary)), end)
        total = total + after.masked_fill(end < 0, 0.0).clamp(min=FLOOR)
    return total.clamp(max=0.0)


def _read(values: Float[Tensor, "B T"], position: Int64[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    if values.shape[1] == 0:
        return values.new_zeros(position.shape)
    return values.gather(1, position.clamp(min=0))


def _relabel(chunk: Int64[Tensor, "B T"], merged: Int64[Tensor, "B C"]) -> Int64[Tensor, "B T"]:
    return torch.where(chunk >= 0, merged.gather(1, chunk.clamp(min=0)), -1)
