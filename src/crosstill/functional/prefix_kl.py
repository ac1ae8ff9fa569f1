r"""Prefix KL: the teacher's next-token mass, summed over spellings in the student's tokens.

Where both models begin a token, the teacher's distribution says with what probability the text goes
on with the bytes of each of its tokens v. Spelled in student tokens, seg(v) = (u1, u2, ...), it
says so for the student's tokens too: all v whose spelling begins with u1 count for u1; and behind
u1, those whose spelling goes on with u2 count for u2. So nearly every student position gets a whole
distribution to learn, in the student's own tokens.

Axes: S student rows of a block, R teacher rows, V ids.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.functional.losses import LossSum
from crosstill.functional.numerics import accumulation_dtype
from crosstill.functional.prefixes import PrefixTree, TeacherMass, spans

TINY = 1e-37
"""A student's mass below this counts as this and gets no gradient: its logarithm stays finite."""


@dataclass(frozen=True)
class PrefixTables:
    """What prefix KL knows of two vocabularies; made once from a `VocabularyPair`.

    Attributes:
        starts: the teacher's tokens by their spelling in student tokens.
        longer: the student's tokens that span several teacher tokens, by their spelling in teacher
            tokens.
        student_class: for each student token, the token that it is pooled with where both models
            begin a token (itself, mostly); -1: none.
        teacher_class: for each teacher token, the first student token of its spelling; -1: none.
        above: [Vs, D], for tokens of `longer` the node of `longer` after each of its teacher
            tokens, -1 past the end and for all other tokens.
        members: ids sorted by class, and
        class_start: [Vs + 1], where each class begins in `members`.
        student_bytes: bytes of each student token.
        teacher_bytes: bytes of each teacher token.
    """

    starts: PrefixTree
    longer: PrefixTree
    student_class: Int64[Tensor, " Vs"]
    teacher_class: Int64[Tensor, " Vt"]
    above: Int64[Tensor, "Vs D"]
    members: Int64[Tensor, " P"]
    class_start: Int64[Tensor, " Vs1"]
    student_bytes: Int64[Tensor, " Vs"]
    teacher_bytes: Int64[Tensor, " Vt"]

    def to(self, device: torch.device) -> "PrefixTables":
        """Move everything to a device."""
        if self.student_class.device == device:
            return self
        return PrefixTables(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class PrefixBlock:
    """Some chunks: which rows they read, and where in the trees their tokens stand; all int64.

    Student rows are numbered: first the n rows that begin a chunk, then those inside one. Teacher
    rows are numbered from 0 to R.

    Attributes:
        student: (sequence, position) of each student row.
        teacher: (sequence, position) of each teacher row.
        start_teacher: [n], the teacher row of each chunk.
        inner_teacher: [I], the teacher row of the chunk that each inner row is in.
        inner_node: [I], the node of `starts` that the text has reached there.
        exit_start: chunks that begin where a spelling may also go on,
        exit_teacher: the teacher row of the chunk before, and
        exit_node: the node of `starts` that that chunk has reached.
        split_start: chunks whose class holds tokens that span several teacher tokens,
        split_first: the first teacher token of the chunk,
        split_teacher: the teacher row after the teacher tokens read so far,
        split_node: the node of `longer` they have reached, and
        split_depth: how many they are.
    """

    student: tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]
    teacher: tuple[Int64[Tensor, " R"], Int64[Tensor, " R"]]
    start_teacher: Int64[Tensor, " n"]
    inner_teacher: Int64[Tensor, " I"]
    inner_node: Int64[Tensor, " I"]
    exit_start: Int64[Tensor, " X"]
    exit_teacher: Int64[Tensor, " X"]
    exit_node: Int64[Tensor, " X"]
    split_start: Int64[Tensor, " P"]
    split_first: Int64[Tensor, " P"]
    split_teacher: Int64[Tensor, " P"]
    split_node: Int64[Tensor, " P"]
    split_depth: Int64[Tensor, " P"]


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
        The sum in nats, and the number of student rows. `sums` has its three parts: rows at the
        start of chunks, rows inside, and what splits a class.
    """
    mass = TeacherMass(teacher_logits, tables.starts, temperature=temperature, top_k=top_k)
    logits = student_logits.to(accumulation_dtype(student_logits)) / temperature
    count = len(block.start_teacher)
    logprob = torch.log_softmax(logits[:count], -1)
    target, ended = start_targets(mass, block, tables, logits.shape[1])
    start = _start_loss(logprob, target, tables)
    inner = _inner_loss(logits[count:], mass, block, tables)
    split = _split_loss(logprob, target, ended, mass, block, tables)
    rows = torch.tensor(float(logits.shape[0]), device=logits.device, dtype=logits.dtype)
    parts = {"start": start, "inside": inner, "split": split}
    return LossSum(
        (start + inner + split).to(logits.dtype),
        rows,
        {name: value.detach().to(logits.dtype) for name, value in parts.items()},
    )


def start_targets(
    mass: TeacherMass, block: PrefixBlock, tables: PrefixTables, width: int
) -> tuple[Float[Tensor, "n Vs"], Float[Tensor, " n"]]:
    """Compute the target over classes at every row that begins a chunk; float64.

    The chunk before ends with the bytes of a teacher token; but the student cannot know whether the
    teacher's token ended there or goes on. So the target is a mixture: the next teacher row with
    the probability that it ended, and what else the longer tokens go on with.

    Returns:
        The mass of each class, in the column of the token it is named after, and the probability
        that the teacher's last token ended there.
    """
    token, by_start = mass.starts()
    row = block.start_teacher
    target = by_start.new_zeros(len(row), width)
    target[:, token] = by_start[row] / mass.whole[row, None]
    ended = torch.ones_like(target[:, 0])
    if not len(block.exit_start):
        return target, ended
    here = mass.below(block.exit_teacher, block.exit_node)
    seen = here > TINY
    here = here.clamp(min=TINY)
    share = mass.ends(block.exit_teacher, block.exit_node) / here
    ended[block.exit_start] = torch.where(seen, share, 1.0)
    target *= ended[:, None]
    owner, child = tables.starts.children(block.exit_node)
    goes_on = mass.below(block.exit_teacher[owner], child) / here[owner]
    kind = tables.student_class[tables.starts.token[child]]
    goes_on = torch.where((kind >= 0) & seen[owner], goes_on, 0.0)
    place = (block.exit_start[owner], kind.clamp(min=0))
    return target.index_put_(place, goes_on, accumulate=True), ended


def _start_loss(
    logprob: Float[Tensor, "n Vs"], target: Float[Tensor, "n Vs"], tables: PrefixTables
) -> Float[Tensor, ""]:
    """KL between the classes' masses; what the teacher did not say is compared as one class."""
    pooled = tables.longer.order
    probability = logprob.exp()
    by_class = probability.index_add(1, tables.student_class[pooled], probability[:, pooled])
    target = target.to(logprob.dtype)
    loss = torch.xlogy(target, target) - target * by_class.clamp(min=TINY).log()
    missing = (1.0 - target.sum(1)).clamp(min=0.0)
    untold = by_class.masked_fill(target > 0, 0.0)
    untold = untold.index_fill(1, pooled, 0.0).sum(1)
    rest = torch.xlogy(missing, missing) - missing * untold.clamp(min=TINY).log()
    return loss.sum() + torch.where(missing > 1e-6, rest, 0.0).sum()


def _inner_loss(
    logits: Float[Tensor, "I Vs"], mass: TeacherMass, block: PrefixBlock, tables: PrefixTables
) -> Float[Tensor, ""]:
    """KL inside teacher tokens: over the tokens they go on with, and one class for all others."""
    row, node = block.inner_teacher, block.inner_node
    here = mass.below(row, node)
    weight = (here > TINY).to(here.dtype)
    here = here.clamp(min=TINY)
    owner, child = tables.starts.children(node)
    token = tables.starts.token[child]
    target = (mass.below(row[owner], child) / here[owner]) * weight[owner]
    ended = (mass.ends(row, node) / here) * weight
    normaliser = torch.logsumexp(logits, -1)
    chosen = (logits[owner, token] - normaliser[owner]).clamp(min=torch.finfo(logits.dtype).min)
    others = logits.index_put((owner, token), logits.new_tensor(-torch.inf))
    rest = _safe_logsumexp(others) - normaliser
    return (
        (torch.xlogy(target, target) - target * chosen.clamp(min=_LOG_TINY)).sum()
        + (torch.xlogy(ended, ended) - ended * rest.clamp(min=_LOG_TINY)).sum()
    )  # fmt: skip


_LOG_TINY = -85.0


def _safe_logsumexp(logits: Float[Tensor, "I Vs"]) -> Float[Tensor, " I"]:
    """As logsumexp, but with a zero gradient where every logit is minus infinity."""
    nothing = (logits == -torch.inf).all(-1)
    filled = logits.masked_fill(nothing.unsqueeze(-1), 0.0)
    return torch.logsumexp(filled, -1).masked_fill(nothing, -torch.inf)


def _split_loss(
    logprob: Float[Tensor, "n Vs"],
    target: Float[Tensor, "n Vs"],
    ended: Float[Tensor, " n"],
    mass: TeacherMass,
    block: PrefixBlock,
    tables: PrefixTables,
) -> Float[Tensor, ""]:
    """KL within a class, between student tokens that span several teacher tokens and the others.

    The text says which teacher token comes first, so the row after it says what comes second: that
    splits the tokens that begin with the first. Likewise for the third, among those that begin with
    the first two.
    """
    start, node, depth = block.split_start, block.split_node, block.split_depth
    if not len(start):
        return logprob.sum() * 0.0
    kind = tables.teacher_class[block.split_first]
    children = tables.longer.child
    heir, branch = tables.longer.children(node)
    slot = torch.cumsum(children[node + 1] - children[node] + 1, 0)
    slot = slot - (children[node + 1] - children[node] + 1)  # of the others; the branches follow
    place = slot[heir] + branch - children[node[heir]] + 1

    owner, id = _members(kind, node, depth, tables)
    own = torch.where(
        _step(tables, id, depth[owner] - 1) == node[owner],
        _step(tables, id, depth[owner]) - children[node[owner]] + 1,
        0,
    ).clamp(min=0)
    each = logprob[start[owner], id].double().exp()
    groups = each.new_zeros(len(start) + len(branch)).index_add(0, slot[owner] + own, each)
    whole = each.new_zeros(len(start)).index_add(0, owner, each).clamp(min=TINY).log()

    wanted = mass.token(block.split_teacher[heir], tables.longer.token[branch])
    first = mass.token(block.start_teacher[start], block.split_first)
    first = first / mass.whole[block.start_teacher[start]] * ended[start]
    share = (first / target[start, kind].clamp(min=TINY)).clamp(max=1.0)
    wanted = wanted * torch.where(depth == 1, share, 1.0)[heir]
    total = wanted.new_zeros(len(start)).index_add(0, heir, wanted)
    has_rest = (depth == 1) | (tables.longer.end[node] > tables.longer.low[node])
    rest = torch.where(has_rest, (1.0 - total).clamp(min=0.0), 0.0)
    norm = torch.where(has_rest, 1.0, total.clamp(min=TINY))
    found = groups[place].clamp(min=TINY).log() - whole[heir]
    others = groups[slot].clamp(min=TINY).log() - whole
    loss = torch.xlogy(wanted, wanted / norm[heir]) - wanted * found
    return loss.sum() + (torch.xlogy(rest, rest) - rest * others).sum()


def _members(
    kind: Int64[Tensor, " P"],
    node: Int64[Tensor, " P"],
    depth: Int64[Tensor, " P"],
    tables: PrefixTables,
) -> tuple[Int64[Tensor, " E"], Int64[Tensor, " E"]]:
    """List the student tokens that a split is about: a class's, or those below a node."""
    ids = torch.cat([tables.members, tables.longer.order])
    behind = len(tables.members)
    low = torch.where(depth == 1, tables.class_start[kind], behind + tables.longer.low[node])
    high = torch.where(depth == 1, tables.class_start[kind + 1], behind + tables.longer.high[node])
    owner, place = spans(low, high)
    return owner, ids[place]


def _step(
    tables: PrefixTables, id: Int64[Tensor, " E"], depth: Int64[Tensor, " E"]
) -> Int64[Tensor, " E"]:
    """The node of `longer` after so many teacher tokens (counted from 0) of a student token."""
    last = tables.above.shape[1] - 1
    return torch.where(depth <= last, tables.above[id, depth.clamp(max=last)], -1)
