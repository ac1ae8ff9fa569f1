r"""Chunk KL: the difference in a chunk's log-probability, shared over the student's tokens.

Axes: B sequences, Ts student tokens, Tt teacher tokens, C chunks.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.chunk import chunk_loglikelihood, scored_chunks
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import FLOOR, accumulation_dtype

CREDITS = ("equal", "prior")
"""How a chunk's difference is shared over the student's tokens."""

SURE = 1e-3
"""Nats. A chunk that the student is surer of than this shares its difference equally."""


def chunk_kl_loss(
    student_logprob: Float[Tensor, "B Ts"],
    teacher_logprob: Float[Tensor, "B Tt"],
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    *,
    credit: str = "equal",
    clip: float = 10.0,
) -> LossSum:
    r"""Move each student token's log-probability by its share of what its chunk lacks.

    Chunk c holds the student's tokens i = 1..m with log-probabilities :math:`\ell_i`. Its
    difference is :math:`d_c = \log p_T(c) - \log p_S(c)`, and token i is credited with
    :math:`A_i = w_i d_c`, where the shares :math:`w_i` add up to 1: 1/m for "equal",
    :math:`\ell_i / \log p_S(c)` for "prior". With :math:`A_i` held fixed in the gradient,

    .. math:: \sum_c \sum_{i \in c} h(A_i), \qquad \frac{\partial}{\partial \ell_i} = -A_i

    h is half the square, and linear beyond `clip`, where the slope stays at `clip`. The gradient
    is that of the policy gradient with :math:`A_i` as advantage.

    Args:
        student_logprob: nats, log p(token t | tokens before t); 0.0 at position 0.
        teacher_logprob: the same for the teacher; gets no gradient.
        student_chunk: chunk of each student token, -1 outside every chunk.
        teacher_chunk: chunk of each teacher token.
        credit: "equal" or "prior".
        clip: nats > 0, the largest slope; `math.inf` clips nothing.

    Returns:
        The sum, in squared nats (nats beyond `clip`), and the number of student tokens in the
        chunks that have a likelihood on both sides. Of further sums in nats, "log_ratio" has
        the sum of log p_S - log p_T, which on the student's own samples estimates the reverse KL,
        and "gap" the sum of its absolute value.

    Raises:
        ConfigError: an unknown credit, or a clip that is not above 0.

    Numerics: as `alm_loss`. Where the student gives a chunk all but probability one, the shares
    of "prior" have no meaning and are equal.

    Source: Niu et al. 2026, arXiv:2606.09456, section 4 ("prior", on the student's samples);
    equal shares as in other public trainers. Here for any text.
    Oracle: tests/oracle/chunk_kl.py.

    Example:
        >>> student = torch.tensor([[0.0, -1.0, -2.0]])
        >>> teacher = torch.tensor([[0.0, -4.0]])
        >>> chunks = torch.tensor([[-1, 0, 0]]), torch.tensor([[-1, 0]])
        >>> chunk_kl_loss(student, teacher, *chunks).total  # -1/2 for each of two tokens
        tensor(0.2500)
    """
    check_chunk_kl(credit, clip)
    num_chunks = max(student_chunk.shape[1], teacher_chunk.shape[1])
    counted = counted_chunks(student_chunk, teacher_chunk)
    student = chunk_loglikelihood(student_logprob.detach(), student_chunk, num_chunks)
    teacher = chunk_loglikelihood(teacher_logprob.detach(), teacher_chunk, num_chunks)
    gap = (teacher - student).masked_fill(~counted, 0.0)
    inside = counted_tokens(student_chunk, counted)
    own = student_logprob.to(accumulation_dtype(student_logprob)).masked_fill(~inside, 0.0)
    own = own.clamp(min=FLOOR)
    advantage = _shares(own.detach(), student, student_chunk, inside, credit) * _at(
        gap, student_chunk
    )
    each = torch.nn.functional.huber_loss(
        own, own.detach() + advantage, reduction="none", delta=min(clip, -2 * FLOOR)
    )
    sums = {"gap": gap.abs().sum(), "log_ratio": -gap.sum()}
    total = each.masked_fill(~inside, 0.0).sum()
    return LossSum(total, inside.sum().to(total.dtype), sums)


def counted_chunks(
    student_chunk: Int64[Tensor, "B Ts"], teacher_chunk: Int64[Tensor, "B Tt"]
) -> Bool[Tensor, "B C"]:
    """Tell which chunks hold a token with a likelihood on both sides.

    Example:
        >>> counted_chunks(torch.tensor([[-1, 0, 1]]), torch.tensor([[-1, 1, 1]]))
        tensor([[False,  True, False]])
    """
    num_chunks = max(student_chunk.shape[1], teacher_chunk.shape[1])
    return scored_chunks(student_chunk, num_chunks) & scored_chunks(teacher_chunk, num_chunks)


def counted_tokens(
    student_chunk: Int64[Tensor, "B Ts"], counted: Bool[Tensor, "B C"]
) -> Bool[Tensor, "B Ts"]:
    """Tell which tokens with a likelihood are in a chunk that counts.

    Example:
        >>> counted_tokens(torch.tensor([[0, 0, 1]]), torch.tensor([[True, False, False]]))
        tensor([[False,  True, False]])
    """
    inside = (student_chunk >= 0) & _at(counted, student_chunk)
    return torch.cat([torch.zeros_like(inside[:, :1]), inside[:, 1:]], 1)


def check_chunk_kl(credit: str, clip: float) -> None:
    """Refuse an unknown credit and a clip that leaves nothing.

    Raises:
        ConfigError: with what came.
    """
    if credit not in CREDITS:
        raise ConfigError(f"credit must be one of {', '.join(CREDITS)}; got {credit!r}")
    if not clip > 0.0:
        raise ConfigError(f"clip must be above 0 nats (inf clips nothing); got {clip}")


def _at(values: Tensor, chunk: Tensor) -> Tensor:
    """What stands at each token's chunk; anything outside of chunks."""
    return (
        values.gather(1, chunk.clamp(min=0)) if values.shape[1] else values.new_zeros(chunk.shape)
    )


def _shares(logprob: Tensor, total: Tensor, chunk: Tensor, inside: Tensor, credit: str) -> Tensor:
    """[B, Ts]: how much of its chunk's difference each token is credited with; adds up to 1."""
    ones = inside.to(logprob.dtype)
    size = torch.zeros_like(total).scatter_add(1, chunk.clamp(min=0), ones)
    equal = 1.0 / _at(size, chunk).clamp(min=1.0)
    if credit == "equal":
        return equal
    whole = _at(total, chunk)
    unsure = whole < -SURE
    return torch.where(unsure, logprob / torch.where(unsure, whole, -1.0), equal)
