"""Orthogonal matching pursuit: a new token is a weighted sum of tokens both vocabularies have.

Axes: Vs rows of the source vocabulary, Vt of the target, N target tokens without a partner, S
tokens that both vocabularies have, K of them a sum, D hidden.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from crosstill import hub
from crosstill.align.spellings import lowest_ids
from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder, text_encoder
from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport, assembled
from crosstill.transfer.initial.features import spelling_features
from crosstill.transfer.initial.pursuit import sparse_sums
from crosstill.transfer.initial.rows import averages
from crosstill.transfer.tables import Tables, read_tables

_K_DONOR, _K_SPELLING = 64, 4
_CANDIDATES = 16  # for each token of a sum
_NUMBERS = 2**25  # in the largest temporary tensor


@dataclass(frozen=True)
class Sums:
    """For each of N tokens the shared tokens it is a sum of, and their weights."""

    ids: Int64[Tensor, "N K"]
    weights: Float[Tensor, "N K"]


@dataclass(frozen=True)
class Omp(Initialiser):
    """A weighted sum of a few shared tokens for every token that has no partner.

    The weights are found in a space in which every token of the target has a place, and are then
    used on the source's rows of the same tokens. Both times rows are taken as differences from
    their mean, so that neither space's zero matters.

    With a `donor`, a model that has the target's tokenizer, the space is its embeddings: its input
    rows for the input, its output rows for the output where both models have such. Without one it
    is what the tokens are spelled with (`features.spelling_features`): " walking" comes from
    " walk", "walking" and " talking", and not from "w", "alk" and "ing".

    A token with which no shared one has anything in common is made as `fvt` makes it.

    Attributes:
        donor: folder or hub name of a model whose tokenizer has the target's tokens.
        k: tokens a sum; 0: 64 with a donor, 4 without.
        candidates: how many shared tokens are considered for each token; 0: 16 for each of the
            `k`; as many as there are shared tokens make it the pursuit without a shortcut.

    Source: Goddard and Fernandes Neto 2025, "Training-Free Tokenizer Transplantation via Orthogonal
    Matching Pursuit", arXiv:2506.06607, section 3, except for the differences from the mean and the
    candidates. A space of the tokens' own where there is no donor: Dobler and de Melo 2023,
    "FOCUS", arXiv:2305.14481, with pieces in place of co-occurrence.
    """

    name: ClassVar[str] = "omp"
    donor: str | None = None
    k: int = 0
    candidates: int = 0

    def __post_init__(self) -> None:
        """Check the options."""
        for option in ("k", "candidates"):
            if getattr(self, option) < 0:
                raise ConfigError(
                    f"initial.omp.{option} is {getattr(self, option)}, expected 0 or more"
                )
        if self.donor is not None and not isinstance(self.donor, str):
            raise ConfigError(f"initial.omp.donor is {self.donor!r}, expected a folder or hub name")

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`.

        Raises:
            ConfigError: the donor does not have the target's tokens, or no token is shared.
        """
        open_ = np.flatnonzero(source.kept < 0)
        shared = np.flatnonzero(source.exact >= 0)
        if not len(shared):
            raise ConfigError(
                "the two tokenizers share no token, and omp makes new ones from shared ones; use "
                "fvt or suffix"
            )
        places = source.exact[shared]
        spaces = self._spaces(source, shared, open_)
        sums = {side: self._sums(space, len(shared)) for side, space in spaces.items()}
        spelled = source.spelled(open_)

        def make(side: str, rows: Tensor) -> Tensor:
            return _applied(sums.get(side, sums["input"]), rows, places, averages(rows, spelled))

        combined = (sums["input"].weights != 0).any(1).cpu().numpy()
        averaged = int((~combined & (np.diff(spelled[0]) > 0)).sum())
        report = TransplantReport(
            copied=len(shared),
            averaged=averaged,
            by_role=int((source.by_role >= 0).sum()),
            mean=len(open_) - averaged - int(combined.sum()),
            combined=int(combined.sum()),
        )
        return assembled(source, make), report

    def _spaces(
        self, source: Source, shared: np.ndarray, open_: np.ndarray
    ) -> dict[str, Float[Tensor, "SN F"]]:
        """The places of shared and then of open tokens for each side; open ones may lie at 0."""
        device = source.tables.input.device
        tokens = source.tokens
        ids = [*shared.tolist(), *open_.tolist()]
        if self.donor is None:
            return {"input": spelling_features([tokens[id] for id in ids]).to(device)}
        model, encoder = hub.load_model(self.donor), text_encoder(hub.load_tokenizer(self.donor))
        tables, places = _donor_rows(self.donor, read_tables(model), encoder, tokens, ids)
        two = tables.output is not None and source.tables.output is not None
        sides = {"input": tables.input, **({"output": tables.head} if two else {})}
        return {
            side: _centred(rows.to(device), places, len(shared)) for side, rows in sides.items()
        }

    def _sums(self, space: Float[Tensor, "SN F"], shared: int) -> Sums:
        k = self.k or (_K_SPELLING if self.donor is None else _K_DONOR)
        candidates = self.candidates or _CANDIDATES * k
        return Sums(*sparse_sums(space[shared:], space[:shared], k, candidates))


def _donor_rows(
    name: str, tables: Tables, encoder: TextEncoder, tokens: list[bytes], ids: list[int]
) -> tuple[Tables, np.ndarray]:
    """The donor's tables, and its id for each target token, by bytes; -1 where it has none."""
    known = lowest_ids(encoder)
    wanted = [tokens[id] for id in ids]
    found = np.array([known.get(data, -1) if data else -1 for data in wanted], np.int64)
    found[found >= len(tables.input)] = -1
    ordinary = sum(map(bool, wanted))
    if (found >= 0).sum() * 2 < ordinary:
        raise ConfigError(
            f"the donor {name} has {(found >= 0).sum()} of the target tokenizer's {ordinary} "
            f"tokens; a model that has the target's tokenizer is expected"
        )
    return tables, found


def _centred(rows: Float[Tensor, "Vd D"], places: np.ndarray, shared: int) -> Float[Tensor, "SN D"]:
    """The rows at some places as differences from the shared ones' mean; 0 where the place is -1.

    Axes: Vd rows of the donor.
    """
    there = torch.from_numpy(places).to(rows.device)
    work = rows[there.clamp(min=0)].to(torch.promote_types(rows.dtype, torch.float32))
    inside = (there >= 0)[:, None]
    mean = work[:shared][inside[:shared, 0]].mean(0)
    return torch.where(inside, work - mean, 0)


def _applied(
    sums: Sums, rows: Float[Tensor, "Vs D"], places: np.ndarray, rest: Float[Tensor, "N D"]
) -> Float[Tensor, "N D"]:
    """The sums on a table's rows at the places of shared tokens; `rest` where a sum is empty."""
    work = rows.to(torch.promote_types(rows.dtype, torch.float32))
    own = work[torch.from_numpy(places).to(work.device)]
    mean = own.mean(0)
    own, weights = own - mean, sums.weights.to(work)
    step = max(1, _NUMBERS // (sums.ids.shape[1] * rows.shape[1]))
    made = [
        (weights[start : start + step, None] @ own[sums.ids[start : start + step]])[:, 0] + mean
        for start in range(0, len(weights), step)
    ]
    filled = (weights != 0).any(1)[:, None]
    return torch.where(filled, torch.cat(made), rest.to(work)) if made else rest
