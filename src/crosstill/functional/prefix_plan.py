"""Which rows prefix KL reads and where in the trees their tokens stand: from the batch alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from crosstill.functional.prefix_blocks import PrefixBlock, PrefixTables
from crosstill.functional.rows import ChunkRows, chunk_rows

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PrefixPlan:
    """All chunks of a batch: N of them, I inner rows, P splits, W rows of text. See `PrefixBlock`.

    Attributes:
        rows: the chunks.
        inner_chunk: [I], the chunk an inner row is in; ascending.
        inner_position: [I], its position.
        inner_node: [I].
        exit_node: [N], the node that the chunk before has reached; -1 where it has reached none.
        exit_first: [N], the teacher token of the chunk before if its spelling leads elsewhere; -1.
        split_chunk: [P], ascending.
        split_depth: [P].
        split_node: [P].
        split_next: [P], the teacher token behind those that lead to the node; -1: none.
        inner_token: [I], the student token that comes there.
        inner_own: [I], the one that would by the spelling of the chunk's first teacher token.
        text_chunk: [W], the chunk a row is in that the text teaches; ascending.
        text_position: [W], its position.
        text_token: [W], the token that comes there.
        first: [N], the first teacher token of each chunk.
        token: [N], the first student token of each chunk.
        width: Tt, to number the teacher's positions.
    """

    rows: ChunkRows
    inner_chunk: Int64[Tensor, " I"]
    inner_position: Int64[Tensor, " I"]
    inner_node: Int64[Tensor, " I"]
    exit_node: Int64[Tensor, " N"]
    exit_first: Int64[Tensor, " N"]
    split_chunk: Int64[Tensor, " P"]
    split_depth: Int64[Tensor, " P"]
    split_node: Int64[Tensor, " P"]
    split_next: Int64[Tensor, " P"]
    inner_token: Int64[Tensor, " I"]
    inner_own: Int64[Tensor, " I"]
    text_chunk: Int64[Tensor, " W"]
    text_position: Int64[Tensor, " W"]
    text_token: Int64[Tensor, " W"]
    first: Int64[Tensor, " N"]
    token: Int64[Tensor, " N"]
    width: int

    def __len__(self) -> int:
        """How many student rows are covered."""
        return len(self.rows.batch) + len(self.inner_chunk) + len(self.text_chunk)

    def blocks(self, chunks: int) -> list[PrefixBlock]:
        """Cut the plan into blocks of so many chunks."""
        count = len(self.rows.batch)
        return [self._block(a, min(a + chunks, count)) for a in range(0, count, chunks)]

    def _block(self, start: int, stop: int) -> PrefixBlock:
        inner = _between(self.inner_chunk, start, stop)
        split = _between(self.split_chunk, start, stop)
        exits = start + (self.exit_node[start:stop] >= 0).nonzero().squeeze(1)
        text = _between(self.text_chunk, start, stop)
        rows = self.rows
        of_text = self.text_chunk[text]
        batch, own = rows.batch[start:stop], rows.teacher_row[start:stop]
        of_split = self.split_chunk[split]
        keys = torch.cat(
            [
                batch * self.width + own,
                rows.batch[exits] * self.width + rows.teacher_row[exits - 1],
                rows.batch[of_split] * self.width
                + rows.teacher_row[of_split]
                + self.split_depth[split],
            ]
        )
        keys, place = torch.unique(keys, return_inverse=True)
        at_start, at_exit, at_split = place.split([stop - start, len(exits), len(of_split)])
        of_inner = self.inner_chunk[inner] - start
        return PrefixBlock(
            student=(
                torch.cat([batch, batch[of_inner], rows.batch[of_text]]),
                torch.cat(
                    [
                        rows.student_row[start:stop],
                        self.inner_position[inner],
                        self.text_position[text],
                    ]
                ),
            ),
            teacher=(keys // self.width, keys % self.width),
            start_teacher=at_start,
            start_first=self.first[start:stop],
            start_token=self.token[start:stop],
            inner_teacher=at_start[of_inner],
            inner_node=self.inner_node[inner],
            inner_first=self.first[self.inner_chunk[inner]],
            inner_token=self.inner_token[inner],
            inner_own=self.inner_own[inner],
            exit_start=exits - start,
            exit_teacher=at_exit,
            exit_node=self.exit_node[exits],
            exit_first=self.exit_first[exits],
            split_start=of_split - start,
            split_teacher=at_split,
            split_node=self.split_node[split],
            split_depth=self.split_depth[split],
            split_next=self.split_next[split],
            text_token=self.text_token[text],
        )


def plan_prefixes(
    student_ids: Int64[Tensor, "B Ts"],
    teacher_ids: Int64[Tensor, "B Tt"],
    teacher_mask: Int64[Tensor, "B Tt"],
    student_chunk: Int64[Tensor, "B Ts"],
    teacher_chunk: Int64[Tensor, "B Tt"],
    tables: PrefixTables,
) -> PrefixPlan:
    """Follow every chunk's tokens through the trees.

    Args:
        student_ids: the student's tokens.
        teacher_ids: the teacher's.
        teacher_mask: 1 where a teacher token stands.
        student_chunk: chunk of each student token, -1 outside.
        teacher_chunk: chunk of each teacher token.
        tables: of the two vocabularies.
    """
    rows = chunk_rows(student_chunk, teacher_chunk)
    first = teacher_ids[rows.batch, rows.teacher_row + 1]
    tokens = _tokens(rows, student_ids, student_chunk)
    spelled = tables.student_bytes[tokens.clamp(min=0)].cumsum(1)
    nodes, own = tables.starts.walk(tokens), _spelled(first, tokens, tables)
    last = (rows.student_length - 1)[:, None]
    elsewhere = (own.gather(1, last) != tokens.gather(1, last)).squeeze(1)
    more = torch.nn.functional.pad(tokens[:, 1:] >= 0, (0, 1))
    inner = more & (spelled < tables.teacher_bytes[first][:, None]) & (nodes > 0)
    chunk, depth = inner.nonzero(as_tuple=True)
    untold, behind = (more & ~inner).nonzero(as_tuple=True)
    parts = tables.classes.of[tokens[:, 0]] == tables.teacher_class[first]
    splits = _splits(rows, parts, teacher_ids, teacher_mask, tables)
    return PrefixPlan(
        rows,
        chunk,
        rows.student_row[chunk] + depth + 1,
        nodes[chunk, depth],
        _exits(rows, nodes, tables),
        torch.where(elsewhere, first, -1).roll(1),
        *splits,
        tokens[chunk, depth + 1],
        own[chunk, depth + 1],
        untold,
        rows.student_row[untold] + behind + 1,
        tokens[untold, behind + 1],
        first,
        tokens[:, 0],
        teacher_ids.shape[1],
    )


def _tokens(
    rows: ChunkRows, student_ids: Int64[Tensor, "B Ts"], student_chunk: Int64[Tensor, "B Ts"]
) -> Int64[Tensor, "N D"]:
    """The student's tokens of each chunk; -1 past its end."""
    longest = int(rows.student_length.max()) if len(rows.batch) else 1
    step = torch.arange(longest, device=student_ids.device)
    batch = rows.batch[:, None]
    position = (rows.student_row[:, None] + 1 + step).clamp(max=student_ids.shape[1] - 1)
    held = student_chunk[batch, position] == rows.chunk[:, None]
    held &= step < rows.student_length[:, None]
    return torch.where(held, student_ids[batch, position], -1)


def _spelled(
    first: Int64[Tensor, " N"], tokens: Int64[Tensor, "N D"], tables: PrefixTables
) -> Int64[Tensor, "N D"]:
    """The student's tokens by the spelling of each chunk's first teacher token.

    -1 past its end, and from the second place on at which the text has other tokens.
    """
    step = torch.arange(tokens.shape[1], device=tokens.device)
    place = tables.spelled[first][:, None] + step
    known = place < tables.spelled[first + 1][:, None]
    own = torch.where(known, tables.spelling[place.clamp(max=len(tables.spelling) - 1)], -1)
    along = torch.nn.functional.pad((own == tokens)[:, :-1].cumprod(1).bool(), (1, 0), value=True)
    return torch.where(along, own, -1)


def _exits(
    rows: ChunkRows, nodes: Int64[Tensor, "N D"], tables: PrefixTables
) -> Int64[Tensor, " N"]:
    """For each chunk, the node that the chunk just before it reached, if its token may go on."""
    none = torch.full_like(rows.batch, -1)
    if len(none) < 2:
        return none
    reached = nodes.gather(1, (rows.student_length - 1)[:, None]).squeeze(1)[:-1]
    tree = tables.starts
    may_go_on = (reached > 0) & (tree.child[reached + 1] > tree.child[reached])
    next_to = (
        (rows.batch[1:] == rows.batch[:-1])
        & (rows.student_row[1:] == rows.student_end[:-1])
        & (rows.teacher_row[1:] == rows.teacher_end[:-1])
        & (rows.teacher_length[:-1] == 1)
    )
    none[1:] = torch.where(may_go_on & next_to, reached, -1)
    return none


def _splits(
    rows: ChunkRows,
    parts: Bool[Tensor, " N"],
    teacher_ids: Int64[Tensor, "B Tt"],
    teacher_mask: Int64[Tensor, "B Tt"],
    tables: PrefixTables,
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"], Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """The chunks, depths and nodes at which a class's tokens part, and the teacher's next tokens.

    Node -1: none is reached; token -1: there is none. Not of chunks whose student's token is in
    another class than their teacher's.
    """
    step = torch.arange(1, tables.above.shape[1] + 1, device=teacher_ids.device)
    position = rows.teacher_row[:, None] + step
    inside = position < teacher_ids.shape[1]
    position = position.clamp(max=teacher_ids.shape[1] - 1)
    batch = rows.batch[:, None]
    inside &= teacher_mask[batch, position] > 0
    tokens = torch.where(inside, teacher_ids[batch, position], -1)
    tree = tables.longer
    nodes = tree.walk(tokens[:, :-1])
    low, high = tree.between(nodes)
    part = (nodes > 0) & (high > low)
    kind = tables.teacher_class[teacher_ids[rows.batch, rows.teacher_row + 1]]
    known = kind < len(tables.classes) - 1
    part[:, :1] |= (known & (tables.classes.sizes()[kind] > 1))[:, None]
    part &= parts[:, None]
    chunk, depth = part.nonzero(as_tuple=True)
    return chunk, depth + 1, nodes[chunk, depth], tokens[chunk, depth + 1]


def _between(values: Int64[Tensor, " E"], start: int, stop: int) -> slice:
    """The slice of ascending values from `start` on and below `stop`."""
    low, high = torch.searchsorted(values, values.new_tensor([start, stop])).tolist()
    return slice(low, high)
