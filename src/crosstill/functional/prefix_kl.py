r"""Prefix KL: the teacher's next-token mass, summed over spellings in the student's tokens.

Where both models begin a token, the teacher's distribution says with what probability the text goes
on with the bytes of each of its tokens v. Spelled in student tokens, seg(v) = (u1, u2, ...), it
says so for the student's tokens too: all v whose spelling begins with u1 count for u1; and behind
u1, those whose spelling goes on with u2 count for u2. So nearly every student position gets a whole
distribution to learn, in the student's own tokens.

Axes: B sequences, Ts student tokens, Tt teacher tokens, V ids.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.functional.losses import LossSum, add_up
from crosstill.functional.prefix_blocks import PrefixTables
from crosstill.functional.prefix_plan import plan_prefixes
from crosstill.functional.prefix_rows import prefix_rows_loss

CHUNKS = 128
"""Chunks that are looked at together: their rows of both vocabularies stand in memory at once."""


def prefix_kl_loss(
    student_logits: Float[Tensor, "B Ts Vs"],
    teacher_logits: Float[Tensor, "B Tt Vt"],
    student_ids: Int64[Tensor, "B Ts"],
    teacher_ids: Int64[Tensor, "B Tt"],
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    tables: PrefixTables,
    *,
    teacher_mask: Int64[Tensor, "B Tt"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> LossSum:
    r"""Match next-token distributions by summing the teacher's over spellings.

    .. math:: \sum_{rows} KL\big(P^*(\cdot \mid s) \,\|\, p_S(\cdot \mid s)\big), \quad
              P^*(u \mid s) = m(s u) / m(s), \quad m(s) = \sum_{v:\, seg(v) \succeq s} p_T(v)

    over the classes of student tokens that both sides can tell apart; see the method's page.

    Args:
        student_logits: raw, row t predicts token t + 1.
        teacher_logits: raw; gets no gradient.
        student_ids: the student's tokens.
        teacher_ids: the teacher's.
        student_chunk: chunk of each student token, -1 outside every chunk.
        teacher_chunk: chunk of each teacher token; equal indices mean equal bytes.
        tables: of the two vocabularies, from `crosstill.objectives.prefix_tables`.
        teacher_mask: 1 where a teacher token stands; None: everywhere.
        temperature: of both softmaxes, above 0; the divergence is not multiplied by its square.
        top_k: as if the teacher gave only so many tokens of each row; the rest is compared as one
            class.

    Returns:
        The sum over the student's rows, and their number. `sums` holds its parts: rows at the
        `start` of chunks, rows `inside` a teacher token, the `split` of classes, and the rows that
        learn the `text`.

    Numerics: the teacher's sums are in float64, the student's side in float32 (float64 for float64
    logits). A mass below 1e-37 counts as that and gets no gradient. The rows are found by `nonzero`
    from the batch alone; nothing of the student's is read back from the device.

    Source: crosstill's own; docs/methods/prefix_kl.md has the derivation.
    Oracle: tests/oracle/prefix_kl.py.
    """
    mask = torch.ones_like(teacher_ids) if teacher_mask is None else teacher_mask
    plan = plan_prefixes(student_ids, teacher_ids, mask, student_chunk, teacher_chunk, tables)
    parts = [
        prefix_rows_loss(
            student_logits[block.student],
            teacher_logits[block.teacher],
            block,
            tables,
            temperature=temperature,
            top_k=top_k,
        )
        for block in plan.blocks(CHUNKS)
    ]
    return add_blocks(parts, student_logits)


def add_blocks(parts: list[LossSum], like: Tensor) -> LossSum:
    """Add the sums of blocks; 0 with the graph of `like` where there is none.

    Example:
        >>> add_blocks([], torch.zeros(1, 2, requires_grad=True)).total
        tensor(0., grad_fn=<SumBackward0>)
    """
    if not parts:
        nothing = like[..., :0].sum(dtype=torch.promote_types(like.dtype, torch.float32))
        zero = nothing.detach()
        return LossSum(nothing, zero, dict.fromkeys(("start", "inside", "split", "text"), zero))
    return add_up(parts)
