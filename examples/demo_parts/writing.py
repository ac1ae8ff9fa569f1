"""What the student learns from: texts that the teacher itself writes.

Prompts are the openings of paragraphs; the teacher goes on by drawing from its own distribution. A
student that reads these texts is taught where the teacher is at home, and on text of the kind that
the teacher divergence is measured on.
"""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from crosstill.evaluation.divergence import whole_text
from crosstill.evaluation.sampling import sample
from crosstill.text.encode import TextEncoder

PROMPT_TOKENS = 28
NEW_TOKENS = 96
BATCH = 96
LEAST_ROWS = 2 * BATCH


def openings(paragraphs: list[str], encoder: TextEncoder, count: int, *, seed: int) -> list[str]:
    """Take the openings of some paragraphs, chosen at random, as prompts.

    An opening has about `PROMPT_TOKENS` tokens and ends where a word ends.
    """
    order = list(paragraphs)
    random.Random(seed).shuffle(order)  # noqa: S311 - a choice, no secret
    found = (opening_of(paragraph, encoder) for paragraph in order)
    return [prompt for prompt in found if prompt][:count]


def opening_of(paragraph: str, encoder: TextEncoder) -> str:
    """The opening of a paragraph up to the first word end at `PROMPT_TOKENS`, or nothing."""
    ids = np.asarray(encoder.encode(paragraph))
    starts_word = encoder.bytes.first_byte[ids[PROMPT_TOKENS:]] == ord(" ")
    if not starts_word.any():
        return ""
    length = PROMPT_TOKENS + int(starts_word.argmax())
    return encoder.bytes.spell(ids[:length]).decode()


def let_teacher_write(
    teacher: PreTrainedModel,
    encoder: TextEncoder,
    prompts: list[str],
    *,
    seconds: float,
    seed: int,
    on_rows: Callable[[int], None],
) -> list[str]:
    """Let the teacher go on from each prompt, at temperature 1, until the prompts or the time end.

    The time is what makes the demonstration end in time on a slow machine: fewer rows are written,
    and fewer are then trained on.

    Args:
        teacher: The model that writes.
        encoder: Of its tokenizer.
        prompts: Texts.
        seconds: No batch is begun after them, once there are `LEAST_ROWS`.
        seed: Of the draws.
        on_rows: Called with the number of rows after each batch.

    Returns:
        Prompt and continuation as one text each.
    """
    started = time.monotonic()
    begin = [] if encoder.roles.eos is None else [encoder.roles.eos]
    texts: list[str] = []
    for start in range(0, len(prompts), BATCH):
        if len(texts) >= LEAST_ROWS and time.monotonic() - started > seconds:
            break
        batch = prompts[start : start + BATCH]
        drawn = sample(
            teacher,
            [[*begin, *encoder.encode(prompt)] for prompt in batch],
            stop=encoder.bytes.special,
            max_new_tokens=NEW_TOKENS,
            seed=seed + start,
            rows_per_batch=BATCH,
        )
        texts += [
            prompt + whole_text(encoder.bytes.spell(ids))
            for prompt, ids in zip(batch, drawn, strict=True)
        ]
        on_rows(len(texts))
    return texts


def write_rows(path: Path, texts: list[str]) -> Path:
    """Write one `{"text": ...}` a line."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path
