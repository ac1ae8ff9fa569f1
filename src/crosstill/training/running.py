"""What every kind of run does with its folder: claim it, train in it, complete it."""

import json
import logging
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerFast

from crosstill.align.chunks import align
from crosstill.align.view import fragment
from crosstill.plain_json import write_json
from crosstill.report.html import write_report
from crosstill.training.callbacks import StopOnSignal
from crosstill.training.checkpoint import newest_complete
from crosstill.training.output import claimed, free_name
from crosstill.training.texts import row_text
from crosstill.training.trainer import DistillTrainer

logger = logging.getLogger(__name__)

SUMMARY, RECIPE, ALIGNMENT = "summary.json", "recipe.json", "alignment.html"
SHOWN, SHOWN_ROWS = 300, 3


def is_main_process() -> bool:
    """Whether this process writes; known before anything else of a run is."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def held(
    folder: Path, recipe: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[dict[str, Any] | None]:
    """Claims the output folder in the one process that writes, and notes the recipe there.

    Yields:
        The summary of a run that is finished, where `resume` finds one; there is nothing to do.
    """
    if not is_main_process():
        yield _finished(folder) if resume else None
        return
    with claimed(folder, resume=resume, overwrite=overwrite) as aside:
        if aside is not None:
            logger.warning("what was in %s is now in %s", folder, aside)
        summary = _finished(folder) if resume else None
        if summary is None:
            write_json(folder / RECIPE, recipe)
        yield summary


def _finished(folder: Path) -> dict[str, Any] | None:
    if not (folder / SUMMARY).exists():
        return None
    logger.warning("%s is finished: there is nothing to resume", folder)
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def train_to_end(trainer: DistillTrainer, stop: StopOnSignal, *, resume: bool) -> None:
    """Trains; leaves at a signal, with a checkpoint saved.

    Args:
        trainer: What trains.
        stop: Its callback that waits for signals.
        resume: Go on from the newest whole checkpoint, if there is one.

    Raises:
        KeyboardInterrupt: SIGINT came.
        SystemExit: SIGTERM came.
    """
    start = resume
    if resume:
        found, refused = newest_complete(trainer.folder)
        if found is None:
            reasons = "; ".join(refused) or "there is none yet"
            logger.warning("no whole checkpoint (%s): training starts at step 0", reasons)
            start = False
    try:
        trainer.train(resume_from_checkpoint=start or None)
    finally:
        stop.restore()
    if stop.received is not None:
        step = trainer.state.global_step
        logger.warning("stopped at step %d with a checkpoint; --resume goes on", step)
        if stop.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt


def show_alignment(
    folder: Path,
    rows: Any,
    student_tokenizer: PreTrainedTokenizerFast,
    teacher_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Writes how two tokenizers meet on the beginning of the first rows."""
    first = islice(cast(Iterable[Any], rows), SHOWN_ROWS)
    texts = [row_text(row)[:SHOWN] for row in first]
    shown = [fragment(align(text, student_tokenizer, teacher_tokenizer)) for text in texts if text]
    (folder / ALIGNMENT).write_text("\n".join(shown), encoding="utf-8")


def free_place(folder: Path) -> Path:
    """A folder to save to; what an attempt that ended while it was saving left is renamed."""
    if folder.exists():
        folder.rename(free_name(folder))
    return folder


def complete(folder: Path, summary: dict[str, Any]) -> None:
    """Writes the summary and the report; with the summary a run is finished."""
    write_json(folder / SUMMARY, summary)
    write_report(folder)
