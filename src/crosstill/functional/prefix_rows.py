"""Prefix KL of a block of rows: three sums of divergences over partitions of the student's tokens.

Axes: S student rows of a block, n of them at the start of a chunk and I inside one; R teacher rows,
V ids, C classes, P splits, E members of splits.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.functional.class_mass import class_mass
from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.prefix_blocks import PrefixBlock, PrefixTables
from crosstill.functional.prefix_split import members, split_loss
from crosstill.functional.prefixes import TINY, TeacherMass, offsets


def prefix_rows_loss(
    student_logits: Float[Tensor, "S Vs"],
    teacher_logits: Float[Tensor, "R Vt"],
    block: PrefixBlock,
    tables: PrefixTables,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> LossSum:
    """Sum prefix KL over the student rows of a block.

    Args:
        student_logits: at `block.student`.
        teacher_logits: at `block.teacher`.
        block: which rows these are.
        tables: of the two vocabularies.
        temperature: of both softmaxes.
        top_k: as if the teacher gave only so many tokens of each row.

    Returns:
        The sum in nats, and the number of student rows. `sums` has its four parts: rows at the
        start of chunks, rows inside, what splits a class, and rows that the text teaches.
    """
    mass = TeacherMass(teacher_logits, tables.starts, temperature=temperature, top_k=top_k)
    logits = student_logits.to(accumulation_dtype(student_logits))
    logits = logits if temperature == 1.0 else logits / temperature
    count = len(block.start_teacher)
    first, inside, told = logits.split([count, len(block.inner_node), len(block.text_token)])
    target, ended = start_targets(mass, block, tables)
    split, member = members(block, tables)
    by_class, single = class_mass(first, tables.classes, block.split_start[split], member)
    parts = {
        "start": _start_loss(by_class, target),
        "inside": _inner_loss(inside, mass, block, tables),
        "split": split_loss(single, (split, member), target, ended, mass, block, tables),
        "text": _text_loss(told, block.text_token),
    }
    rows = torch.tensor(float(logits.shape[0]), device=logits.device, dtype=logits.dtype)
    return LossSum(
        sum(parts.values(), logits.new_zeros(())).to(logits.dtype),
        rows,
        {name: value.detach().to(logits.dtype) for name, value in parts.items()},
    )


def start_targets(
    mass: TeacherMass, block: PrefixBlock, tables: PrefixTables
) -> tuple[Float[Tensor, "n C"], Float[Tensor, " n"]]:
    """Compute the target over classes at every row that begins a chunk; float64.

    The chunk before ends with the bytes of a teacher token; but the student cannot know whether the
    teacher's token ended there or goes on. So the target is a mixture: the next teacher row with
    the probability that it ended, and what else the longer tokens go on with. The text's own next
    token counts for the student's token that came of it.

    Returns:
        The mass of each class, and the probability that the teacher's last token ended there.
    """
    row, known = block.start_teacher, len(tables.classes) - 1
    ended = mass.whole.new_ones(len(row))
    before = mass.token(block.exit_teacher, block.exit_first.clamp(min=0))
    before = torch.where(block.exit_first >= 0, before, 0.0)
    here = mass.below(block.exit_teacher, block.exit_node) + before
    seen = here > TINY
    here = here.clamp(min=TINY)
    share = (mass.ends(block.exit_teacher, block.exit_node) + before) / here
    ended[block.exit_start] = torch.where(seen, share, 1.0)
    target = mass.whole.new_zeros(len(row), known + 1)
    mass.starts(row, ended / mass.whole[row], target[:, :known])
    own, joined = tables.joined
    target.index_add_(1, joined, target[:, own]).index_fill_(1, own, 0.0)
    owner, child = tables.starts.children(block.exit_node)
    goes_on = mass.below(block.exit_teacher[owner], child) / here[owner]
    kind = tables.classes.of[tables.starts.token[child]]
    goes_on = torch.where((kind < known) & seen[owner], goes_on, 0.0)
    target.index_put_((block.exit_start[owner], kind), goes_on, accumulate=True)
    return _told(target, ended, mass, block, tables), ended


def _told(
    target: Float[Tensor, "n C"],
    ended: Float[Tensor, " n"],
    mass: TeacherMass,
    block: PrefixBlock,
    tables: PrefixTables,
) -> Float[Tensor, "n C"]:
    """Move the mass of the text's own teacher token to the class of the student token that came."""
    every = torch.arange(len(target), device=target.device)
    own, came = tables.teacher_class[block.start_first], tables.classes.of[block.start_token]
    moved = mass.token(block.start_teacher, block.start_first) * ended
    moved = torch.minimum(moved / mass.whole[block.start_teacher], target[every, own])
    target.index_put_((every, own), -moved, accumulate=True)
    return target.index_put_((every, came), moved, accumulate=True)


def _start_loss(by_class: Float[Tensor, "n C"], target: Float[Tensor, "n C"]) -> Float[Tensor, ""]:
    """KL between the classes' masses; what the teacher did not say is compared as one class."""
    missing = (1.0 - target.sum(1)).clamp(min=0.0)
    target = target.to(by_class.dtype)
    loss = torch.xlogy(target, target) - target * by_class.clamp(min=TINY).log()
    untold = by_class.masked_fill(target > 0, 0.0).sum(1)
    rest = torch.xlogy(missing, missing) - missing * untold.clamp(min=TINY).log()
    return loss.sum() + torch.where(missing > 1e-6, rest, 0.0).sum()


def _inner_loss(
    logits: Float[Tensor, "I Vs"], mass: TeacherMass, block: PrefixBlock, tables: PrefixTables
) -> Float[Tensor, ""]:
    """KL inside teacher tokens: over the tokens they go on with, and one class for all others."""
    row, node = block.inner_teacher, block.inner_node
    first = mass.token(row, block.inner_first)
    here = mass.below(row, node) + torch.where(block.inner_own < 0, first, 0.0)
    weight = (here > TINY).to(here.dtype)
    here = here.clamp(min=TINY)
    owner, child = tables.starts.children(node)
    token = tables.starts.token[child]
    target = (mass.below(row[owner], child) / here[owner]) * weight[owner]
    owner, token, target = _followed(owner, token, target, first / here * weight, block, tables)
    ended = (mass.ends(row, node) / here) * weight
    normaliser = torch.logsumexp(logits, -1)
    chosen = (logits[owner, token] - normaliser[owner]).clamp(min=torch.finfo(logits.dtype).min)
    others = logits.index_put((owner, token), logits.new_tensor(-torch.inf))
    rest = _safe_logsumexp(others) - normaliser
    return (
        (torch.xlogy(target, target) - target * chosen.clamp(min=math.log(TINY))).sum()
        + (torch.xlogy(ended, ended) - ended * rest.clamp(min=math.log(TINY))).sum()
    )  # fmt: skip


def _text_loss(logits: Float[Tensor, "W Vs"], token: Int64[Tensor, " W"]) -> Float[Tensor, ""]:
    """Cross entropy on the text's own tokens."""
    chosen = logits.gather(1, token[:, None]).squeeze(1) - torch.logsumexp(logits, -1)
    return -chosen.clamp(min=math.log(TINY)).sum()


def _followed(
    owner: Int64[Tensor, " E"],
    token: Int64[Tensor, " E"],
    target: Float[Tensor, " E"],
    first: Float[Tensor, " I"],
    block: PrefixBlock,
    tables: PrefixTables,
) -> tuple[Int64[Tensor, " E2"], Int64[Tensor, " E2"], Float[Tensor, " E2"]]:
    """Give the mass of the text's own teacher token to the student's token that came.

    Its spelling by itself may say another one, or the text may have left that spelling before.
    """
    row = (block.inner_token != block.inner_own).nonzero().squeeze(1)
    node, tree = block.inner_node[row], tables.starts
    low, high = tree.between(block.inner_node)
    begin = offsets(high - low)[row]  # of each row's entries

    def entry(token: Tensor) -> Tensor:
        child = tree.follow(node, token)
        return torch.where(child >= 0, begin + child - tree.child[node], -1)

    own, came = entry(block.inner_own[row]), entry(block.inner_token[row])
    moved, left, new = first[row], own >= 0, came < 0
    target = target.index_add(0, own[left], -moved[left]).clamp(min=0.0)
    target = target.index_add(0, came[~new], moved[~new])
    return (
        torch.cat([owner, row[new]]),
        torch.cat([token, block.inner_token[row[new]]]),
        torch.cat([target, moved[new]]),
    )


def _safe_logsumexp(logits: Float[Tensor, "I Vs"]) -> Float[Tensor, " I"]:
    """As logsumexp, but with a zero gradient where every logit is minus infinity."""
    nothing = (logits == -torch.inf).all(-1)
    filled = logits.masked_fill(nothing.unsqueeze(-1), 0.0)
    return torch.logsumexp(filled, -1).masked_fill(nothing, -torch.inf)
