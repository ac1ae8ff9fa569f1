"""The rows of a run with words put in that the student must spell."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from accelerate import PartialState
from datasets import Dataset

from crosstill.teachers.local import LocalTeacher
from crosstill.teachers.reword import Rewording
from crosstill.text.encode import TextEncoder
from crosstill.text.rows import LossOn
from crosstill.training.config import DistillConfig
from crosstill.training.fingerprint import (
    data_fingerprint,
    model_fingerprint,
    tokenizer_fingerprint,
)
from crosstill.training.values import is_number

REWORDED = "rows"
"""Folder in which a run keeps them, for when it goes on."""


def wrong_share(share: object) -> list[str]:
    """What is wrong with a share of words; empty where nothing is, or its type is named already.

    Example:
        >>> wrong_share(0.2), wrong_share(2)
        ([], ['reword is 2: a share of the words, from 0 to 1'])
    """
    if is_number(share) and not 0.0 <= cast(float, share) <= 1.0:
        return [f"reword is {share}: a share of the words, from 0 to 1"]
    return []


def reworded(
    rows: Dataset,
    teacher: LocalTeacher,
    target: TextEncoder,
    share: float,
    stages: Sequence[DistillConfig],
    folder: Path,
) -> Dataset:
    """Lets a teacher put words into the rows that a run reads; see `Rewording`.

    The first process does it, the others read what it made. Rows that no stage gets to read are
    left out: they are drawn at random before.

    Args:
        rows: all rows.
        teacher: on the device where it shall run.
        target: the student's tokenizer.
        share: of the words; 0: the rows are given back as they are.
        stages: the settings of each part of the run, at least one.
        folder: of the run.
    """
    if not share:
        return rows
    settings = stages[0]
    rewording = Rewording(
        teacher,
        target,
        share,
        seed=settings.seed,
        loss_on=cast(LossOn, settings.loss_on),
        max_length=teacher.encoder.budget(settings.max_length),
        chat_template_kwargs=settings.teacher_chat_template_kwargs,
    )
    read = _as_many(rows, stages)
    with PartialState().main_process_first():
        return rewording.dataset(read, folder / REWORDED / f"{_name(read, rewording)}.arrow")


def _name(rows: Dataset, rewording: Rewording) -> str:
    """A hash of all that decides the new rows: a run that goes on with other ones makes them."""
    parts = (
        data_fingerprint(rows),
        model_fingerprint(rewording.teacher.model),
        tokenizer_fingerprint(rewording.teacher.encoder.tokenizer),
        tokenizer_fingerprint(rewording.target.tokenizer),
        rewording.settings,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _as_many(rows: Dataset, stages: Sequence[DistillConfig]) -> Dataset:
    """No more rows than the longest stage reads; all where a stage has no number of steps."""
    if any(stage.max_steps <= 0 for stage in stages):
        return rows
    read = PartialState().num_processes * max(
        stage.max_steps * stage.train_batch_size * stage.gradient_accumulation_steps
        for stage in stages
    )
    return rows.shuffle(seed=stages[0].seed).select(range(read)) if read < len(rows) else rows
