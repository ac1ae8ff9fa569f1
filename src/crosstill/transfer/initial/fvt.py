"""Fast vocabulary transfer: a new token is the mean of the old tokens that spell it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from crosstill.transfer.initial.base import Initialiser, Source, TransplantReport, assembled
from crosstill.transfer.initial.rows import averages
from crosstill.transfer.tables import Tables


@dataclass(frozen=True)
class Fvt(Initialiser):
    """The mean of the source rows that spell a token's bytes; input and output alike.

    - The same bytes: the row is copied bit for bit.
    - A special token: the source's token of the same name, else of the same role.
    - Other bytes: what the source tokenizer writes for them inside a text, else the longest source
      tokens that fit, from the left.
    - Nothing of these, or never written: the mean of all source rows.

    Source: Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression"; the order of
    the cases follows arXiv:2503.20083, except that the rest gets the mean, not Gaussian noise.
    """

    name: ClassVar[str] = "fvt"

    def tables(self, source: Source) -> tuple[Tables, TransplantReport]:
        """Make the new tables; see `Initialiser.tables`."""
        open_ = np.flatnonzero(source.kept < 0)
        spelled = source.spelled(open_)
        found = int((np.diff(spelled[0]) > 0).sum())
        report = TransplantReport(
            copied=int((source.exact >= 0).sum()),
            averaged=found,
            by_role=int((source.by_role >= 0).sum()),
            mean=len(open_) - found,
        )
        return assembled(source, lambda _side, rows: averages(rows, spelled)), report
