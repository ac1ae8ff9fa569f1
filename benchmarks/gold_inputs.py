"""Inputs for the benchmark of GOLD, the same in our process and in the peer's."""

from dataclasses import dataclass

import torch

PROMPT = 4
SHARE = 0.6  # of the smaller vocabulary that both have; real pairs share 30 to 90 %


@dataclass
class Side:
    """One side of a sequence: logits, ids, labels, byte offsets and chunks, each [1, T, ...]."""

    logits: torch.Tensor
    ids: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    chunk: torch.Tensor


def shared(sizes: list[int]) -> list[tuple[int, int]]:
    """(student id, teacher id) of the shared tokens, scattered over both vocabularies."""
    count = int(SHARE * min(sizes))
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randperm(size, generator=generator)[:count].tolist() for size in sizes]
    return list(zip(*columns, strict=True))


def vocabularies(sizes: list[int]) -> list[dict[str, int]]:
    """Names of the tokens of both sides, equal for shared ones."""
    pairs = shared(sizes)
    found = []
    for side, size in enumerate(sizes):
        names = {pair[side]: f"shared {k}" for k, pair in enumerate(pairs)}
        found.append({names.get(v, f"{side} {v}"): v for v in range(size)})
    return found


def inputs(tokens: int, sizes: list[int], seed: int) -> tuple[Side, Side]:
    """Both sides of one answer of so many student tokens; every tenth chunk is cut differently."""
    generator = torch.Generator().manual_seed(seed)
    lengths: tuple[list[int], list[int]] = ([], [])
    while sum(lengths[0]) < tokens:
        odd = torch.rand((), generator=generator) < 0.1
        left = tokens - sum(lengths[0])
        cut = int(torch.randint(0, 2, (), generator=generator))
        lengths[0].append(min(2 if odd and cut else 1, left))
        lengths[1].append(2 if odd and not cut else 1)
    student, teacher = (
        _side(lengths[k], sizes[k], generator) for k in range(2)
    )  # one after the other
    return student, teacher


def _side(lengths: list[int], size: int, generator: torch.Generator) -> Side:
    total = sum(lengths)
    ids = torch.randint(0, size, (1, PROMPT + total), generator=generator)
    ends = [6 * k + 6 * (i + 1) // n for k, n in enumerate(lengths) for i in range(n)]
    chunk = [-1] * PROMPT + [k for k, n in enumerate(lengths) for _ in range(n)]
    offsets = [(0, 0)] * PROMPT + list(zip([0, *ends[:-1]], ends, strict=True))
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    logits = torch.randn((1, PROMPT + total, size), generator=generator).mul_(3.0)
    return Side(logits, ids, labels, torch.tensor([offsets]), torch.tensor([chunk]))
