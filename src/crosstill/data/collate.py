"""From rows to padded tensors for two models.

The collator runs in data-loader workers: it holds nothing but encoders and settings. A row that
cannot be used becomes an empty one, so that batches keep their size on every rank, and is counted.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crosstill.data.pairs import IGNORED, PairedRow, pair_row
from crosstill.errors import ConfigError
from crosstill.text.encode import TextEncoder
from crosstill.text.rows import LossOn, RowFault, check_loss_on

log = logging.getLogger(__name__)

REASONS = (
    "malformed",
    "bad_unicode",
    "empty",
    "template",
    "unknown_token",
    "unspellable",
    "unaligned",
    "too_long",
    "unsupervised",
)
"""Why a row was skipped; the order of `skipped` in a batch."""


class PairCollator:
    """Makes a batch for both models of a list of rows.

    The batch (B rows; Ts, Tt the longest row on each side):

    | key | type | holds |
    |---|---|---|
    | `student_input_ids`, `teacher_input_ids` | int64 [B, T] | right-padded ids |
    | `student_attention_mask`, `teacher_attention_mask` | int64 [B, T] | 1 where a token stands |
    | `student_labels`, `teacher_labels` | int64 [B, T] | ids that are taught, -100 elsewhere |
    | `student_chunk`, `teacher_chunk` | int64 [B, T] | supervised chunk of the row, or -1 |
    | `row_index` | int64 [B] | the row's `row_index`, or -1 |
    | `student_bytes`, `aligned_bytes`, `cut_bytes` | int64 [B] | of what is taught |
    | `skipped` | int64 [R] | rows made empty, by `REASONS` |

    Bytes are those of supervised content: kept, kept and in a supervised chunk, and cut off.
    An empty row is one token that attends to itself (no attention row may be empty), with no label
    and no chunk.

    Args:
        student_encoder: How the student's text becomes ids.
        teacher_encoder: How the teacher's does.
        max_length: Tokens a row may have on each side, at least 2; or the student's and the
            teacher's number (`crosstill.text.encode.budgets` gives a byte tokenizer more).
        pad_to_multiple_of: Batches are padded to a multiple of so many tokens: few shapes, which
            memory allocators and kernels like.
        loss_on: `completion`, `assistant` or `all`.
        chat_template_kwargs: For the student's chat template.
        teacher_chat_template_kwargs: For the teacher's; the student's if `None`.
    """

    def __init__(
        self,
        student_encoder: TextEncoder,
        teacher_encoder: TextEncoder,
        *,
        max_length: int | tuple[int, int],
        pad_to_multiple_of: int = 1,
        loss_on: LossOn = "completion",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        teacher_chat_template_kwargs: Mapping[str, Any] | None = None,
    ):
        check_loss_on(loss_on)
        lowest = max_length if isinstance(max_length, int) else min(max_length)
        if lowest < 2:
            raise ConfigError(f"max_length: expected at least 2 tokens, got {lowest}.")
        self.student_encoder = student_encoder
        self.teacher_encoder = teacher_encoder
        if pad_to_multiple_of < 1:
            raise ConfigError(f"pad_to_multiple_of: expected at least 1, got {pad_to_multiple_of}.")
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.loss_on: LossOn = loss_on
        self.chat_template_kwargs = chat_template_kwargs
        self.teacher_chat_template_kwargs = (
            chat_template_kwargs
            if teacher_chat_template_kwargs is None
            else teacher_chat_template_kwargs
        )
        self._told: set[str] = set()

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch; raises ConfigError where no row could ever work (no chat template)."""
        skipped = np.zeros(len(REASONS), np.int64)
        paired = []
        for row in rows:
            try:
                paired.append(self._pair(row))
            except RowFault as fault:
                skipped[REASONS.index(fault.reason)] += 1
                self._tell(fault)
                paired.append(self._empty())
        indices = [row.get("row_index", -1) if isinstance(row, Mapping) else -1 for row in rows]
        multiple = self.pad_to_multiple_of
        student_pad, teacher_pad = _pad_id(self.student_encoder), _pad_id(self.teacher_encoder)
        return {
            "student_input_ids": _padded([p.student_ids for p in paired], student_pad, multiple),
            "student_attention_mask": _mask([p.student_ids for p in paired], multiple),
            "student_labels": _padded([p.student_labels for p in paired], IGNORED, multiple),
            "student_chunk": _padded([p.student_chunk for p in paired], -1, multiple),
            "teacher_input_ids": _padded([p.teacher_ids for p in paired], teacher_pad, multiple),
            "teacher_attention_mask": _mask([p.teacher_ids for p in paired], multiple),
            "teacher_labels": _padded([p.teacher_labels for p in paired], IGNORED, multiple),
            "teacher_chunk": _padded([p.teacher_chunk for p in paired], -1, multiple),
            "row_index": torch.tensor(indices, dtype=torch.int64),
            "student_bytes": _numbers([p.student_bytes for p in paired]),
            "aligned_bytes": _numbers([p.aligned_bytes for p in paired]),
            "cut_bytes": _numbers([p.cut_bytes for p in paired]),
            "skipped": torch.from_numpy(skipped),
        }

    def _pair(self, row: Mapping[str, Any]) -> PairedRow:
        return pair_row(
            row,
            self.student_encoder,
            self.teacher_encoder,
            max_length=self.max_length,
            loss_on=self.loss_on,
            chat_template_kwargs=self.chat_template_kwargs,
            teacher_chat_template_kwargs=self.teacher_chat_template_kwargs,
        )

    def _empty(self) -> PairedRow:
        none = np.array([-1], np.int64)
        return PairedRow(
            student_ids=np.array([_pad_id(self.student_encoder)], np.int64),
            student_labels=np.array([IGNORED], np.int64),
            student_chunk=none,
            teacher_ids=np.array([_pad_id(self.teacher_encoder)], np.int64),
            teacher_labels=np.array([IGNORED], np.int64),
            teacher_chunk=none,
            student_bytes=0,
            aligned_bytes=0,
            cut_bytes=0,
        )

    def _tell(self, fault: RowFault) -> None:
        """Logs the first row of each reason; the rest is in the counts."""
        if fault.reason not in self._told:
            self._told.add(fault.reason)
            log.warning("skipped a row (%s; counted from here on): %s", fault.reason, fault)


def _pad_id(encoder: TextEncoder) -> int:
    """What fills a row up; the attention mask hides it, so any id will do."""
    return 0 if encoder.roles.pad is None else encoder.roles.pad


def _padded(rows: Sequence[np.ndarray], value: int, multiple: int) -> Tensor:
    length = -(-max(map(len, rows), default=0) // multiple) * multiple
    out = torch.full((len(rows), length), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.from_numpy(np.ascontiguousarray(row))
    return out


def _mask(rows: Sequence[np.ndarray], multiple: int) -> Tensor:
    return _padded([np.ones(len(row), np.int64) for row in rows], 0, multiple)


def _numbers(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
