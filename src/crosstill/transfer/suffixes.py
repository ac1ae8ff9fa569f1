"""The longest known token that ends at each byte of a text, for whole batches at once.

The tokens stand in a tree by their bytes read backwards. From every position one walk goes back
through the text as far as the tree allows, all positions in step: so it takes `LONGEST` steps
however long the text is, and a new byte needs only the few before it.

Axes: B sequences, T bytes, E edges of the tree, N nodes, V ids of the byte model.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

LONGEST = 16
"""Bytes of the longest token that is looked for.

Source: Minixhofer et al. 2025, arXiv:2503.20083, appendix C.
"""


class Suffixes(nn.Module):
    """Finds, for each position, the longest known token whose last byte stands there.

    Args:
        edges: int64 [E], ascending: node * 256 + byte.
        following: int64 [E], the node that each leads to.
        ends: int64 [N], the row of the token that each node spells, or -1.
        exact: int64 [V], the row of each id that is no byte (a special token), or -1. Such an id
            ends what came before: no token reaches over it.

    Example:
        >>> finder = Suffixes.of({b"a": 3, b" a": 5, b"ba": 7}, exact=[-1] * 256 + [9])
        >>> finder(torch.tensor([[*b"a a", 256, *b"bab"]])).tolist()
        [[3, -1, 5, 9, -1, 7, -1]]
    """

    edges: Tensor
    following: Tensor
    ends: Tensor
    exact: Tensor

    def __init__(self, edges: Tensor, following: Tensor, ends: Tensor, exact: Tensor) -> None:
        super().__init__()
        self.register_buffer("edges", edges)
        self.register_buffer("following", following)
        self.register_buffer("ends", ends)
        self.register_buffer("exact", exact)

    @classmethod
    def of(cls, tokens: Mapping[bytes, int], exact: Sequence[int]) -> "Suffixes":
        """Makes the tree of some tokens, given their rows by their bytes.

        Tokens longer than `LONGEST` are passed over.
        """
        edges, following, ends = map(torch.from_numpy, _tree(tokens))
        return cls(edges, following, ends, torch.tensor(exact, dtype=torch.int64))

    def forward(
        self, ids: Int[Tensor, "B T"], context: Int[Tensor, "B C"] | None = None
    ) -> Int[Tensor, "B T"]:
        """Finds the row of the longest token that ends at each position, or -1.

        Args:
            ids: Ids of a byte model: 0 to 255 are bytes; -1 where there is nothing (padding).
            context: The ids before them, as many as there are, `LONGEST` - 1 at most are used.
        """
        before = ids.new_empty(len(ids), 0) if context is None else context[:, 1 - LONGEST :]
        line = torch.cat([before, ids], 1)
        line = torch.where(line < 256, line, -1)
        size, first = ids.shape[1], before.shape[1]
        node = torch.zeros_like(ids)
        found = torch.full_like(ids, -1)
        alive = torch.ones_like(ids, dtype=torch.bool)
        for back in range(min(LONGEST, line.shape[1])):
            byte = nn.functional.pad(line, (back, 0), value=-1)[:, first : first + size]
            key = node * 256 + byte
            place = torch.searchsorted(self.edges, key).clamp(max=len(self.edges) - 1)
            alive = alive & (byte >= 0) & (self.edges[place] == key)
            node = torch.where(alive, self.following[place], node)
            end = self.ends[node]
            found = torch.where(alive & (end >= 0), end, found)
        return torch.where(ids >= 256, self.exact[ids.clamp(min=0)], found)


def _tree(tokens: Mapping[bytes, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, following and ends of the tree, made depth by depth."""
    known = {data: row for data, row in tokens.items() if 0 < len(data) <= LONGEST}
    lengths = np.array([len(data) for data in known], np.int64)
    flat = np.frombuffer(b"".join(data[::-1].ljust(LONGEST, b"\0") for data in known), np.uint8)
    backwards = flat.reshape(len(known), LONGEST)
    node = np.zeros(len(known), np.int64)
    edges, count = [], 1
    for depth in range(LONGEST):
        inside = lengths > depth
        # Nodes are numbered by depth, so the edges of all depths together are in order.
        keys, which = np.unique(node[inside] * 256 + backwards[inside, depth], return_inverse=True)
        node[inside] = count + which
        count += len(keys)
        edges.append(keys)
    ends = np.full(count, -1, np.int64)
    ends[node] = list(known.values())
    joined = np.concatenate(edges)
    if not len(joined):  # a tree without tokens: one edge that no byte takes
        return np.array([-1]), np.zeros(1, np.int64), ends
    return joined, np.arange(1, count, dtype=np.int64), ends
