"""Prefix KL within a class: between student tokens that span several teacher tokens, and others.

Axes: n rows at the start of a chunk, C classes, P splits, E their members, H their branches.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from crosstill.functional.prefix_blocks import PrefixBlock, PrefixTables
from crosstill.functional.prefixes import TINY, TeacherMass, offsets, spans

NOT_IN = torch.iinfo(torch.int64).max
"""More spellings than any branch has."""


def split_loss(
    single: Float[Tensor, " E"],
    of_split: tuple[Int64[Tensor, " E"], Int64[Tensor, " E"]],
    target: Float[Tensor, "n C"],
    ended: Float[Tensor, " n"],
    mass: TeacherMass,
    block: PrefixBlock,
    tables: PrefixTables,
) -> Float[Tensor, ""]:
    """KL within a class, between student tokens that span several teacher tokens and the others.

    The text says which teacher token comes first, so the row after it says what comes second: that
    splits the tokens that begin with the first. Likewise for the third, among those that begin with
    the first two. Tokens of the class that begin with another teacher token get no more than what
    the text's leaves of the class; what they get of that is not known, and left to the student.
    """
    start, node, depth = block.split_start, block.split_node, block.split_depth
    low, high = tables.longer.between(node)
    heir, branch = tables.longer.children(node)
    slot = offsets(high - low + 2)  # of the others; then of those led elsewhere, then the branches
    place = slot[heir] + branch - low[heir] + 2

    owner, id = of_split
    own = _group(owner, id, block, tables)
    each = single.double()
    groups = each.new_zeros(2 * len(start) + len(branch)).index_add(0, slot[owner] + own, each)
    whole = each.new_zeros(len(start)).index_add(0, owner, each).clamp(min=TINY).log()

    kind = tables.teacher_class[block.start_first[start]]
    wanted = _branch_mass(heir, branch, mass, block, tables)
    wanted = _behind(wanted, heir, branch, mass, block, tables)
    first = mass.token(block.start_teacher[start], block.start_first[start])
    first = first / mass.whole[block.start_teacher[start]] * ended[start]
    share = (first / target[start, kind].clamp(min=TINY)).clamp(max=1.0)
    wanted = wanted * torch.where(depth == 1, share, _ended(wanted, mass, block, tables))[heir]
    total = wanted.new_zeros(len(start)).index_add(0, heir, wanted)
    has_rest = (depth == 1) | (tables.longer.end[node] > tables.longer.low[node])
    rest = torch.where(has_rest, (1.0 - total).clamp(min=0.0), 0.0)
    norm = torch.where(has_rest, 1.0, total.clamp(min=TINY))
    found = groups[place].clamp(min=TINY).log() - whole[heir]
    loss = torch.xlogy(wanted, wanted / norm[heir]) - wanted * found
    others, led = groups[slot], groups[slot + 1]
    asked = (rest * led / (others + led).clamp(min=TINY)).detach()
    asked = torch.where(depth == 1, torch.minimum(asked, 1.0 - share), 0.0)
    return loss.sum() + sum(
        (torch.xlogy(due, due) - due * (got.clamp(min=TINY).log() - whole)).sum()
        for due, got in ((rest - asked, others), (asked, led))
    )


def _group(
    owner: Int64[Tensor, " E"], id: Int64[Tensor, " E"], block: PrefixBlock, tables: PrefixTables
) -> Int64[Tensor, " E"]:
    """In which group of its split a token is: 0, the others; 1, led elsewhere; 2 on, a branch."""
    node, depth = block.split_node[owner], block.split_depth[owner]
    first = block.start_first[block.split_start][owner]
    here, beyond = _step(tables, id, depth - 1), _step(tables, id, depth)
    low, _ = tables.longer.between(node)
    along = torch.where(beyond >= 0, beyond - low + 2, 0)
    itself = tables.spelling[tables.spelled[first].clamp(max=len(tables.spelling) - 1)] == id
    own = torch.where(itself & (depth == 1), 0, 1)
    return torch.where((here == node) & (node >= 0), along, own)


def _branch_mass(
    heir: Int64[Tensor, " H"],
    branch: Int64[Tensor, " H"],
    mass: TeacherMass,
    block: PrefixBlock,
    tables: PrefixTables,
) -> Float[Tensor, " H"]:
    """The mass of the teacher tokens with which the text comes to each branch of a split.

    Those are all whose spelling begins as that of the branch's token does, but those that come to a
    longer branch beside it. Where no student token ends with that token, it is the token alone.
    """
    row, longer = block.split_teacher[heir], tables.longer
    alone = mass.token(row, longer.token[branch])
    node = tables.branch[branch]
    below = mass.below(row, node.clamp(min=0))
    above = tables.within[branch]
    entry = torch.arange(len(branch), device=branch.device) + above - branch
    nested = above >= 0
    exact = below.index_add(0, entry[nested], -below[nested])
    return torch.where(_ends(branch, tables), exact.clamp(min=0.0), alone)


def _ends(branch: Int64[Tensor, " H"], tables: PrefixTables) -> Bool[Tensor, " H"]:
    """Whether a branch has a student token that ends with its teacher token."""
    longer = tables.longer
    return (tables.branch[branch] >= 0) & (longer.end[branch] > longer.low[branch])


def _behind(
    wanted: Float[Tensor, " H"],
    heir: Int64[Tensor, " H"],
    branch: Int64[Tensor, " H"],
    mass: TeacherMass,
    block: PrefixBlock,
    tables: PrefixTables,
) -> Float[Tensor, " H"]:
    """Move the mass of the text's next teacher token to the branch of the student's token."""
    every = torch.arange(len(block.split_start), device=heir.device)
    came, next = block.start_token[block.split_start], block.split_next
    reached = _step(tables, came, block.split_depth - 1) == block.split_node
    told = ((block.split_depth == 1) | reached) & (next >= 0)
    amount = torch.where(told, mass.token(block.split_teacher, next.clamp(min=0)), 0.0)[heir]
    size, counted = _around(next[heir], branch, tables)
    least = size.new_full((len(every),), NOT_IN).scatter_reduce(0, heir, size, "amin")[heir]
    left = counted & (size == least)
    low, _ = tables.longer.between(block.split_node)
    entered = _group(every, came, block, tables)[heir] == branch - low[heir] + 2
    wanted = (wanted - torch.where(left, amount, 0.0)).clamp(min=0.0)
    return wanted + torch.where(entered, amount, 0.0)


def _around(
    next: Int64[Tensor, " H"], branch: Int64[Tensor, " H"], tables: PrefixTables
) -> tuple[Int64[Tensor, " H"], Bool[Tensor, " H"]]:
    """How many spellings begin as the branch's does, if the token is one of them; and if it counts.

    Of several branches that a token is in, it counts for the one with the fewest.
    """
    tree, node, place = tables.starts, tables.branch[branch], tables.place[next.clamp(min=0)]
    low, high = tree.low[node.clamp(min=0)], tree.high[node.clamp(min=0)]
    among = (node >= 0) & (low <= place) & (place < high)
    itself = tables.longer.token[branch] == next
    size = torch.where(among, high - low, torch.where(itself, 0, NOT_IN))
    return size, itself | (among & _ends(branch, tables))


def _ended(
    wanted: Float[Tensor, " H"], mass: TeacherMass, block: PrefixBlock, tables: PrefixTables
) -> Float[Tensor, " P"]:
    """At splits below another: of the branch that the text took there, the token's own share."""
    node = block.split_node
    low, high = tables.longer.between(node)
    before = (torch.arange(len(node), device=node.device) - 1).clamp(min=0)
    entry = offsets(high - low)[before] + node - low[before]
    reached = torch.nn.functional.pad(wanted, (1, 0))[
        torch.where(block.split_depth > 1, entry + 1, 0)
    ]
    token = mass.token(block.split_teacher[before], tables.longer.token[node].clamp(min=0))
    return (token / reached.clamp(min=TINY)).clamp(max=1.0)


def members(
    block: PrefixBlock, tables: PrefixTables
) -> tuple[Int64[Tensor, " E"], Int64[Tensor, " E"]]:
    """List the student tokens that each split is about: a class's, or those below a node."""
    ids = torch.cat([tables.classes.members, tables.longer.order])
    behind = len(tables.classes.members)
    kind, node = tables.teacher_class[block.start_first[block.split_start]], block.split_node
    whole = block.split_depth == 1
    low = torch.where(whole, tables.classes.start[kind], behind + tables.longer.low[node])
    high = torch.where(whole, tables.classes.start[kind + 1], behind + tables.longer.high[node])
    owner, place = spans(low, high)
    return owner, ids[place]


def _step(
    tables: PrefixTables, id: Int64[Tensor, " E"], depth: Int64[Tensor, " E"]
) -> Int64[Tensor, " E"]:
    """The node of `longer` after so many teacher tokens (counted from 0) of a student token."""
    last = tables.above.shape[1] - 1
    return torch.where(depth <= last, tables.above[id, depth.clamp(max=last)], -1)
