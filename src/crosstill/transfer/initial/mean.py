"""Every new token is the mean of all old ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport, assembled
from crosstill.transfer.tables import Tables


@dataclass(frozen=True)
class Mean(Initialiser):
    """The mean of all source rows for every token that has no partner; partners are copied.

    Source: Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021, without
    the noise: no new token is likelier than the old ones are on average.
    """

    name: ClassVar[str] = "mean"

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`."""
        count = int((source.kept < 0).sum())
        report = TransplantReport(
            copied=int((source.exact >= 0).sum()),
            averaged=0,
            by_role=int((source.by_role >= 0).sum()),
            mean=count,
        )

        def make(_side: str, rows: torch.Tensor) -> torch.Tensor:
            work = rows.to(torch.promote_types(rows.dtype, torch.float32))
            return work.mean(0).expand(count, -1)

        return assembled(source, make), report
