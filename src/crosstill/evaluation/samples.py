"""The file that keeps what a teacher wrote: JSON Lines, a header first, written once."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crosstill.errors import ConfigError, DataError
from crosstill.evaluation.prompts import Prompt

_FORMAT = 1


@dataclass(frozen=True)
class Sample:
    """One response of the teacher.

    Attributes:
        kind: of the prompt, as the caller named it.
        prompt_index: counts the prompts over all kinds.
        prompt: text or chat messages.
        response: what the teacher wrote, without special tokens.
        teacher_nats: -log p of the response given the prompt under the teacher, in nats.
    """

    kind: str
    prompt_index: int
    prompt: Prompt
    response: str
    teacher_nats: float


@dataclass(frozen=True)
class Samples:
    """What a teacher wrote, and where it comes from.

    Attributes:
        origin: fingerprints of teacher, tokenizer and prompts, and the settings of the draws.
        items: in the order of the prompts.
    """

    origin: dict[str, Any]
    items: tuple[Sample, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Make rows to train on: each prompt with its response; empty responses are left out.

        Returns:
            `prompt` and `completion`, or `messages` where the prompt is a conversation.

        Example:
            >>> sample = Sample("prose", 0, "Once", " upon a time", 3.0)
            >>> Samples({}, (sample,)).rows()
            [{'prompt': 'Once', 'completion': ' upon a time'}]
        """
        return [_row(item.prompt, item.response) for item in self.items if item.response]


def _row(prompt: Prompt, response: str) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": response}
    return {"messages": [*prompt, {"role": "assistant", "content": response}]}


def read_samples(path: str | Path, *, expected: dict[str, Any] | None = None) -> Samples | None:
    """Read a samples file; None if there is none.

    Args:
        path: the file.
        expected: the origin that the caller would write; None accepts any.

    Raises:
        ConfigError: the file has another origin; the message names what differs.
        DataError: the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        header, *rows = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        if header["crosstill_samples"] != _FORMAT or header["count"] != len(rows):
            raise ValueError(f"{header['count']} samples announced, {len(rows)} found")
        samples = Samples(header["origin"], tuple(Sample(**row) for row in rows))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a whole samples file ({error}). Move it away, and it is drawn again."
        ) from error
    if expected is not None and samples.origin != expected:
        differ = [k for k in expected if samples.origin.get(k) != expected[k]]
        raise ConfigError(
            f"{path} was drawn with another {', '.join(differ)}. Give another path, or move the "
            f"file away to draw the samples again."
        )
    return samples


def write_samples(path: str | Path, samples: Samples) -> Samples:
    """Write a samples file whole or not at all, and return the samples."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"crosstill_samples": _FORMAT, "count": len(samples.items), "origin": samples.origin}
    lines = [header, *(asdict(item) for item in samples.items)]
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with draft.open("wb") as file:
        file.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return samples


def fingerprint_texts(texts: Iterable[Any]) -> str:
    """Hash JSON-like texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return digest.hexdigest()[:16]
