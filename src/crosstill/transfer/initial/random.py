"""Every new token is drawn from a Gaussian with the old ones' mean and spread."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport, assembled
from crosstill.transfer.tables import Tables


@dataclass(frozen=True)
class Random(Initialiser):
    """A Gaussian draw for every token that has no partner; partners are copied.

    Mean and standard deviation are those of the source rows, one by one for each dimension. The
    same seed draws the same rows on every device.
    """

    name: ClassVar[str] = "random"

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`."""
        count = int((source.kept < 0).sum())
        report = TransplantReport(
            copied=int((source.exact >= 0).sum()),
            averaged=0,
            by_role=int((source.by_role >= 0).sum()),
            mean=0,
            drawn=count,
        )
        generator = torch.Generator().manual_seed(source.seed)

        def make(_side: str, rows: torch.Tensor) -> torch.Tensor:
            work = rows.to(torch.promote_types(rows.dtype, torch.float32))
            drawn = torch.randn(count, rows.shape[1], generator=generator, dtype=work.dtype)
            return work.mean(0) + work.std(0, correction=0) * drawn.to(rows.device)

        return assembled(source, make), report
