"""Training rows that know their number, so that an error can name them."""

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from crosstill.errors import DataError


class NumberedRows(Dataset):
    """A data set whose rows carry `row_index`: the one they have, or their place.

    Args:
        rows: A `datasets.Dataset`, a list, or any data set with a length.

    Raises:
        DataError: There is no row.
    """

    def __init__(self, rows: Any) -> None:
        if len(rows) == 0:
            raise DataError("the data set has no row: nothing to train on")
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"row_index": index, **self.rows[index]}


def numbered(rows: Any) -> Any:
    """Numbers the rows of a data set; a stream, which has no places, stays as it is."""
    if rows is None or isinstance(rows, (NumberedRows, IterableDataset)):
        return rows
    if isinstance(rows, torch.utils.data.Dataset) and not isinstance(rows, Sized):
        return rows
    return NumberedRows(rows)
