"""Tokens as vectors of the pieces they are spelled with, so that like spellings are near.

Axes: N tokens, F width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_SHORTEST, _LONGEST = 3, 6
"""Bytes of a piece; the beginning and the end of a token count as one each."""

_BUCKETS = 4
"""How many numbers of a vector each piece goes to."""

_BASE = np.uint64(0x100000001B3)
_SALTS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)


def spelling_features(tokens: Sequence[bytes], width: int = 512) -> Float[Tensor, "N F"]:
    """Compute unit vectors whose inner products say how many rare pieces two tokens share.

    The pieces are all runs of 3 to 6 bytes of a token, with its two ends marked, and those of the
    token in lower case without white space around it. A piece weighs the logarithm of 1 plus the
    number of tokens for each that has it. Pieces go to numbers by a hash, with signs, so that inner
    products are kept but for noise of about `1 / sqrt(width)`; those of one token alone only make
    it longer, and every other part of it shorter.

    Args:
        tokens: Bytes of each token.
        width: A power of two.

    Source: pieces as in Bojanowski et al., "Enriching Word Vectors with Subword Information", 2017;
    sparse signed projection: Kane and Nelson, "Sparser Johnson-Lindenstrauss Transforms", 2014.

    Example:
        >>> one, like, other = spelling_features([b" walking", b" Walking", b"house"])
        >>> bool(one @ like > 0.5 > one @ other)
        True
    """
    forms = [tokens, [data.strip().lower() for data in tokens]]
    found = [_pieces(form, salt) for form, salt in zip(forms, _SALTS, strict=True)]
    owner, hashed = (np.concatenate(parts) for parts in zip(*found, strict=True))
    values, piece, count = np.unique(hashed, return_inverse=True, return_counts=True)
    weight = np.log1p(len(tokens) / count)[piece]
    squares = np.bincount(owner, weight**2, len(tokens))
    weight /= np.sqrt(np.maximum(squares, 1e-12) * _BUCKETS)[owner]
    shared = count[piece] > 1
    owner, hashed, weight = owner[shared], values[piece[shared]], weight[shared]
    rows = torch.zeros(len(tokens) * width)
    for _ in range(_BUCKETS):
        hashed = _mixed(hashed + _SALTS[:1])
        place = owner * width + (hashed & np.uint64(width - 1)).astype(np.int64)
        signed = np.where(hashed >> np.uint64(63), weight, -weight).astype(np.float32)
        rows.index_add_(0, torch.from_numpy(place), torch.from_numpy(signed))
    return rows.view(len(tokens), width)


def _pieces(tokens: Sequence[bytes], salt: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """The token that each piece belongs to, int64, and a hash of the piece, uint64."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens)) + 2
    ends = np.cumsum(lengths)
    symbols = np.full(ends[-1] if len(ends) else 0, 256, np.uint64)
    symbols[ends - 1] = 257
    inside = np.ones(len(symbols), bool)
    inside[ends - 1] = inside[ends - lengths] = False
    symbols[inside] = np.frombuffer(b"".join(tokens), np.uint8)
    owner = np.repeat(np.arange(len(tokens)), lengths)
    end = np.repeat(ends, lengths)
    state, owners, hashes = np.full(len(symbols), salt), [], []
    for size in range(1, _LONGEST + 1):
        starts = np.flatnonzero(np.arange(len(symbols)) + size <= end)
        state[starts] = _mixed(state[starts] * _BASE + symbols[starts + size - 1])
        if size >= _SHORTEST:
            owners.append(owner[starts])
            hashes.append(state[starts].copy())
    return np.concatenate(owners), np.concatenate(hashes)


def _mixed(values: np.ndarray) -> np.ndarray:
    """Spread every bit over all others (the end of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
