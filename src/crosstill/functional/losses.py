"""The published losses as pure functions: tensors in, a sum and a count out.

Axes: B sequences, Ts student tokens, Tt teacher tokens, C chunks.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.errors import ConfigError
from crosstill.functional.chunk import chunk_loglikelihood, merge_chunks, scored_chunks
from crosstill.functional.divergences import binarised_divergence, check_divergence
from crosstill.functional.numerics import FLOOR, accumulation_dtype

IGNORED_LABEL = -100
"""The label of a token that is not supervised."""


@dataclass(frozen=True)
class LossSum:
    """A loss before it is averaged: what was summed, and over how many things.

    Sums of micro-batches and of ranks add up; divide once, by the count of the whole step.

    Attributes:
        total: nats, with the graph.
        count: how many chunks or tokens were summed, as a float, without a graph.
        sums: detached sums over the same things, for reports only.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]
    sums: dict[str, Tensor] = field(default_factory=dict)

    def mean(self) -> Float[Tensor, ""]:
        """Divide the total by the count; 0 with a graph where nothing was counted.

        Example:
            >>> LossSum(torch.tensor(6.0), torch.tensor(3.0)).mean()
            tensor(2.)
            >>> LossSum(torch.tensor(0.0), torch.tensor(0.0)).mean()
            tensor(0.)
        """
        return self.total / self.count.clamp(min=1.0)


def add_up(parts: list[LossSum]) -> LossSum:
    """Add the totals, counts and further sums of several parts.

    Example:
        >>> one = LossSum(torch.tensor(1.0), torch.tensor(2.0), {"kept": torch.tensor(3.0)})
        >>> add_up([one, one]).sums
        {'kept': tensor(6.)}
    """
    return LossSum(
        torch.stack([part.total for part in parts]).sum(),
        torch.stack([part.count for part in parts]).sum(),
        {key: torch.stack([part.sums[key] for part in parts]).sum() for key in parts[0].sums},
    )


@dataclass(frozen=True)
class TeacherChunks:
    """What the teacher says of each chunk, after merging.

    Attributes:
        student_chunk: merged chunk of each student token, -1 outside.
        loglikelihood: nats, the teacher's, 0.0 where the chunk is not counted.
        counted: the chunk holds a token with a likelihood on both sides.
    """

    student_chunk: Int64[Tensor, "B Ts"]
    loglikelihood: Float[Tensor, "B C"]
    counted: Bool[Tensor, "B C"]


def teacher_chunks(
    teacher_logprob: Float[Tensor, "B Tt"],
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    teacher_boundary: Float[Tensor, "B Tt"] | None,
    *,
    merge_threshold: float = 0.0,
    debias: bool = True,
) -> TeacherChunks:
    """Merge the chunks and sum the teacher's side; needs nothing of the student's scores.

    Args:
        teacher_logprob: nats, as in `alm_loss`.
        student_chunk: as in `alm_loss`.
        teacher_chunk: as in `alm_loss`.
        teacher_boundary: nats, as in `alm_loss`.
        merge_threshold: as in `alm_loss`; 0 merges nothing.
        debias: add the boundary's log-mass to each chunk.

    Raises:
        ConfigError: merging or debiasing is asked for without the boundary masses.

    Example:
        >>> chunk = torch.tensor([[-1, 0, 1]])
        >>> logprob = torch.tensor([[0.0, -1.0, -2.0]])
        >>> teacher_chunks(logprob, chunk, chunk, None, debias=False).counted.sum()
        tensor(2)
    """
    if teacher_boundary is None and (debias or merge_threshold > 0):
        raise ConfigError(
            "debiasing and merge_threshold > 0 need teacher_boundary; got None. Give the teacher's "
            "boundary log-masses, or leave student_boundary out and set merge_threshold to 0"
        )
    num_chunks = max(student_chunk.shape[1], teacher_chunk.shape[1])
    if teacher_boundary is not None and merge_threshold > 0:
        student_chunk, teacher_chunk = merge_chunks(
            student_chunk, teacher_chunk, teacher_boundary, merge_threshold
        )
    counted = scored_chunks(student_chunk, num_chunks) & scored_chunks(teacher_chunk, num_chunks)
    boundary = teacher_boundary.detach() if debias and teacher_boundary is not None else None
    total = chunk_loglikelihood(teacher_logprob.detach(), teacher_chunk, num_chunks, boundary)
    return TeacherChunks(student_chunk, total.masked_fill(~counted, 0.0), counted)


def alm_loss(
    student_logprob: Float[Tensor, "B Ts"],
    teacher_logprob: Float[Tensor, "B Tt"],
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    *,
    student_boundary: Float[Tensor, "B Ts"] | None = None,
    teacher_boundary: Float[Tensor, "B Tt"] | None = None,
    temperature: float = 100.0,
    divergence: str = "kl",
    merge_threshold: float = 0.0,
) -> LossSum:
    r"""Match the likelihoods of chunks that both models spell with the same bytes.

    .. math:: \sum_k D\big(p_T(c_k)^{1/\tau} \,\|\, p_S(c_k)^{1/\tau}\big)

    with D a binarised divergence (the chunk, or anything else). This is not a match of whole
    distributions: it bounds their divergence from below.

    Args:
        student_logprob: nats, log p(token t | tokens before t); 0.0 at position 0.
        teacher_logprob: the same for the teacher; gets no gradient.
        student_chunk: chunk of each student token, -1 outside every chunk. Indices count from 0
            in each row; equal indices on both sides mean equal bytes.
        teacher_chunk: chunk of each teacher token.
        student_boundary: nats, log of the mass, after token t, of tokens that begin with a
            boundary byte or are special; read at each chunk's last token. None: no debiasing.
        teacher_boundary: the same for the teacher. Without `student_boundary` it only merges.
        temperature: tau > 0. `math.inf` gives the limit of tau times the divergence, in nats; at
            a finite temperature the divergence is not multiplied by tau.
        divergence: "kl" (zero at equality, not the cross entropy), "reverse_kl", or
            "total_variation".
        merge_threshold: chunks grow until the teacher's boundary probability after them is above
            this; 0 merges nothing. The paper's recipe is 0.1.

    Returns:
        The sum over merged chunks that hold a token with a likelihood on both sides, and their
        number. `sums["gap"]` is the sum of |log p_T - log p_S| in nats.

    Raises:
        ConfigError: unknown divergence, temperature not above 0, or a boundary that is missing.

    Numerics: float32 accumulation also for bfloat16 inputs; float64 stays float64. 1e-6 is
    subtracted after the division by tau, so probability one has a finite gradient. `-inf` outside
    every chunk has no effect; inside one it counts as -1e4 nats and gets no gradient. No tensor
    is read back from the device.

    Source: arXiv:2503.20083, section 3 and appendix A.2. The authors' code divides by a count in
    which merging is applied twice; here the count is that of the merged chunks.
    Oracle: tests/oracle/alm.py.

    Example:
        >>> student = torch.tensor([[0.0, -1.0, -2.0]])
        >>> teacher = torch.tensor([[0.0, -4.0]])
        >>> chunks = torch.tensor([[-1, 0, 0]]), torch.tensor([[-1, 0]])
        >>> loss = alm_loss(student, teacher, *chunks, divergence="total_variation",
        ...                 temperature=float("inf"))
        >>> loss.total, loss.count
        (tensor(1.), tensor(1.))
    """
    check_divergence(divergence, temperature)
    teacher = teacher_chunks(
        teacher_logprob,
        student_chunk,
        teacher_chunk,
        teacher_boundary,
        merge_threshold=merge_threshold,
        debias=student_boundary is not None,
    )
    student = chunk_loglikelihood(
        student_logprob, teacher.student_chunk, teacher.counted.shape[1], student_boundary
    )
    return compare_chunks(
        student.masked_fill(~teacher.counted, 0.0),
        teacher.loglikelihood,
        teacher.counted,
        temperature=temperature,
        divergence=divergence,
    )


def compare_chunks(
    student: Float[Tensor, "*chunks"],
    teacher: Float[Tensor, "*chunks"],
    counted: Bool[Tensor, "*chunks"],
    *,
    temperature: float,
    divergence: str,
) -> LossSum:
    """Sum the divergence over the chunks that are counted.

    Args:
        student: nats, the student's log-likelihood of each chunk.
        teacher: nats, the teacher's.
        counted: bool, which chunks enter the sum.
        temperature: as in `alm_loss`.
        divergence: as in `alm_loss`.

    Example:
        >>> two = torch.tensor([-1.0, -2.0])
        >>> compare_chunks(two, two, two < 0, temperature=1.0, divergence="kl").total
        tensor(0.)
    """
    dtype = accumulation_dtype(student, teacher)
    student, teacher = student.to(dtype), teacher.to(dtype)
    each = binarised_divergence(teacher, student, divergence=divergence, temperature=temperature)
    gap = (teacher - student).detach().abs().masked_fill(~counted, 0.0).sum()
    return LossSum(each.masked_fill(~counted, 0.0).sum(), counted.sum().to(dtype), {"gap": gap})


def sft_loss(logprob: Float[Tensor, "B T"], labels: Int64[Tensor, "B T"]) -> LossSum:
    """Sum the negative log-likelihood of the supervised tokens.

    Args:
        logprob: nats, log p(token t | tokens before t), as `token_logprobs` gives it.
        labels: -100 where a token is not supervised; elsewhere the token itself, which
            `logprob` already scores, so only the mask is read.

    Returns:
        The sum in nats and the number of supervised tokens; position 0 is never one.

    Numerics: as `alm_loss`.

    Example:
        >>> loss = sft_loss(torch.tensor([[0.0, -1.0, -2.0]]), torch.tensor([[5, -100, 7]]))
        >>> loss.total, loss.count
        (tensor(2.), tensor(1.))
    """
    supervised = supervised_tokens(labels)
    kept = logprob.to(accumulation_dtype(logprob)).masked_fill(~supervised, 0.0)
    return LossSum(-kept.clamp(min=FLOOR).sum(), supervised.sum().to(kept.dtype))


def supervised_tokens(labels: Int64[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Tell which tokens are supervised and have a likelihood: labelled, and not at position 0.

    Example:
        >>> supervised_tokens(torch.tensor([[5, -100, 7]]))
        tensor([[False, False,  True]])
    """
    supervised = labels != IGNORED_LABEL
    supervised = torch.cat([torch.zeros_like(supervised[:, :1]), supervised[:, 1:]], 1)
    return supervised
