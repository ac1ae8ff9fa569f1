"""Trees of spellings as tensors, and a teacher's mass below any of their nodes.

Axes: N nodes or rows that are asked for, M nodes of a tree, V ids, K places in a tree's order, C
children of the root.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill.functional.numerics import accumulation_dtype
from crosstill.kernels import ordered_sum as kernel

TINY = 1e-37
"""A mass below this counts as this and gets no gradient: its logarithm stays finite."""


@dataclass(frozen=True)
class PrefixTree:
    """The prefixes of a vocabulary's spellings, as `crosstill.align.prefixes.PrefixTable`.

    Attributes:
        order: ids, sorted by spelling.
        low: first place in `order` below each node.
        high: one past the last.
        end: one past the places that are spelled by the node's prefix itself.
        token: the last token of each prefix; -1 for the root, node 0.
        child: the children of node n are the nodes `child[n]` to `child[n + 1]`.
        firsts: [C + 1], where each of the root's C children begins in `order`, and where the last
            ends.
        keys: (parent, token) of nodes 1 to M as one ascending number.
        width: above every token.
    """

    order: Int64[Tensor, " K"]
    low: Int64[Tensor, " M"]
    high: Int64[Tensor, " M"]
    end: Int64[Tensor, " M"]
    token: Int64[Tensor, " M"]
    child: Int64[Tensor, " M1"]
    firsts: Int64[Tensor, " C1"]
    keys: Int64[Tensor, " M0"]
    width: int

    @classmethod
    def of(cls, arrays: Mapping[str, Tensor]) -> "PrefixTree":
        """Make a tree of the arrays of a `PrefixTable`, by name."""
        width = int(arrays["token"].max()) + 2
        names = ("order", "low", "high", "end", "token", "child")
        keys = arrays["parent"][1:] * width + arrays["token"][1:]
        own = slice(int(arrays["child"][0]), int(arrays["child"][1]))
        low, high = arrays["low"][own], arrays["high"][own]
        firsts = torch.cat([low, high[-1:]]) if len(low) else low.new_zeros(1)
        chosen = {name: arrays[name] for name in names}
        return cls(**chosen, firsts=firsts, keys=keys, width=width)

    def to(self, device: torch.device) -> "PrefixTree":
        """Move the tree to a device."""
        if self.order.device == device:
            return self
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device) for name, value in arrays.items()})

    def follow(self, node: Int64[Tensor, " N"], token: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
        """Find the child that a token leads to; -1 where there is none, or no node to start at."""
        key = node * self.width + token
        place = torch.searchsorted(self.keys, key).clamp(max=max(len(self.keys) - 1, 0))
        if not len(self.keys):
            return torch.full_like(node, -1)
        known = (node >= 0) & (token >= 0) & (token < self.width) & (self.keys[place] == key)
        return torch.where(known, place + 1, -1)

    def walk(self, tokens: Int64[Tensor, "N D"]) -> Int64[Tensor, "N D"]:
        """Find the node after each token of each row; -1 from the first step that leads nowhere.

        Args:
            tokens: -1 past a row's end.
        """
        node, found = tokens.new_zeros(tokens.shape[0]), []
        for depth in range(tokens.shape[1]):
            node = self.follow(node, tokens[:, depth])
            found.append(node)
        return torch.stack(found, 1) if found else tokens

    def children(
        self, node: Int64[Tensor, " N"]
    ) -> tuple[Int64[Tensor, " E"], Int64[Tensor, " E"]]:
        """List all children of all nodes: which node of the list owns it, and the child."""
        return spans(*self.between(node))

    def between(self, node: Int64[Tensor, "*N"]) -> tuple[Int64[Tensor, "*N"], Int64[Tensor, "*N"]]:
        """Find each node's first child, and one past its last; none for node -1."""
        return self.child[node.clamp(min=0)], self.child[node + 1]


def spans(
    start: Int64[Tensor, " N"], stop: Int64[Tensor, " N"]
) -> tuple[Int64[Tensor, " E"], Int64[Tensor, " E"]]:
    """List the numbers of many half-open spans one after the other, and whose each is.

    Example:
        >>> spans(torch.tensor([3, 7]), torch.tensor([5, 8]))
        (tensor([0, 0, 1]), tensor([3, 4, 7]))
    """
    count = stop - start
    owner = torch.repeat_interleave(torch.arange(len(start), device=start.device), count)
    place = torch.arange(len(owner), device=start.device) + (start - offsets(count))[owner]
    return owner, place


def offsets(count: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Where each of many runs begins if they are laid one after the other.

    Example:
        >>> offsets(torch.tensor([2, 0, 3]))
        tensor([0, 2, 2])
    """
    return torch.cumsum(count, 0) - count


class TeacherMass:
    """The teacher's mass below any node of a tree, for some rows of its logits.

    Args:
        logits: [R, Vt].
        tree: how the teacher's tokens are spelled by the student's.
        temperature: of the softmax.
        top_k: only so many tokens of each row are known; None: all.

    Numerics: one cumulative sum in float64 for each row, so that small masses survive.
    """

    def __init__(
        self,
        logits: Float[Tensor, "R V"],
        tree: PrefixTree,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> None:
        wide = logits.detach().to(accumulation_dtype(logits))
        probability = torch.softmax(wide / temperature, -1)
        if top_k is not None and top_k < probability.shape[1]:
            kept = probability.topk(top_k, -1)
            probability = torch.zeros_like(probability).scatter_(1, kept.indices, kept.values)
        self._probability = probability
        self._tree = tree
        self._partial = top_k is not None
        self._sum = ordered_sum(probability, tree.order)

    @property
    def whole(self) -> Float[Tensor, " R"]:
        """What counts as the whole: all that can be spelled, or 1 where not all tokens are known.

        A teacher's tokens without a spelling (control tokens that the student lacks) are left out.
        """
        total = self._sum[:, -1]
        return torch.ones_like(total) if self._partial else total.clamp(min=TINY)

    def below(self, row: Int64[Tensor, " N"], node: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The mass of the tokens whose spelling begins with the node's prefix."""
        return self._sum[row, self._tree.high[node]] - self._sum[row, self._tree.low[node]]

    def ends(self, row: Int64[Tensor, " N"], node: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The mass of the tokens that the node's prefix spells."""
        return self._sum[row, self._tree.end[node]] - self._sum[row, self._tree.low[node]]

    def token(self, row: Int64[Tensor, " N"], id: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The mass of one token."""
        return self._probability[row, id].double()

    def starts(
        self, row: Int64[Tensor, " S"], scale: Float[Tensor, " S"], out: Float[Tensor, "S C"]
    ) -> None:
        """The mass of what begins with each of the root's children, for some rows, scaled."""
        bounds = self._tree.firsts  # the root's children follow each other in its order
        if self._sum.device.type == "cpu" and kernel.available():
            arrays = (part.numpy() for part in (self._sum, row, bounds, scale, out))
            kernel.span_sums(*arrays, threads=torch.get_num_threads())
        else:
            found = self._sum.index_select(1, bounds).diff(dim=1)
            torch.mul(found[row], scale[:, None], out=out)


def ordered_sum(
    probability: Float[Tensor, "R V"], order: Int64[Tensor, " K"]
) -> Float[Tensor, "R K1"]:
    """Sum each row's entries in an order, from the left, in float64; entry 0 is 0.

    Example:
        >>> ordered_sum(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([2, 0]))
        tensor([[0.0000, 0.2500, 0.7500]], dtype=torch.float64)
    """
    on_cpu = probability.device.type == "cpu" and probability.dtype == torch.float32
    if on_cpu and kernel.available():
        rows, columns = probability.contiguous().numpy(), order.numpy().astype(np.int32)
        return torch.from_numpy(kernel.ordered_sum(rows, columns, torch.get_num_threads()))
    below = probability[:, order].double().cumsum(1)
    return torch.nn.functional.pad(below, (1, 0))
