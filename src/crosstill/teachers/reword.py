"""Rows in which a teacher has put words that its student must spell.

Axes: B rows, T tokens of the teacher, N places, V ids of the teacher.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import uuid4

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Bool, Int64
from torch import Tensor

from crosstill.align.spellings import pieces, spell_tokens
from crosstill.errors import ConfigError
from crosstill.evaluation.scoring import padded_batches
from crosstill.teachers.local import LocalTeacher
from crosstill.text.encode import TextEncoder
from crosstill.text.render import Part, Rendered, render
from crosstill.text.rows import LossOn, RowFault

ROWS_AT_A_TIME = 64
"""Rows that are sorted by length together."""
TOKENS_AT_A_TIME = 2_048
"""Padded tokens of one pass of the teacher, at most."""


@dataclass(frozen=True, eq=False)
class Words:
    """Which tokens of a vocabulary are words, and which of them another one spells in several.

    Attributes:
        word: bool [V]; letters, a space may stand before them.
        spaced: bool [V]; a space stands before them.
        spelled: bool [V]; words that take two tokens of the other tokenizer or more.
        opens: bool [V]; begin with a letter, or within a character.
        closes: bool [V]; end with a letter, or within a character.
    """

    word: Bool[np.ndarray, " V"]
    spaced: Bool[np.ndarray, " V"]
    spelled: Bool[np.ndarray, " V"]
    opens: Bool[np.ndarray, " V"]
    closes: Bool[np.ndarray, " V"]


def words(source: TextEncoder, target: TextEncoder) -> Words:
    """Sort the tokens of `source` by what they are to `target`.

    Example:
        ```python
        found = words(text_encoder(teacher_tokenizer), text_encoder(student_tokenizer))
        found.spelled.sum()  # of 49,152 tokens 36,770 where the student has 8,000
        ```
    """
    texts = [_text(data) for data in pieces(source.bytes)]
    bare = [None if text is None else text.removeprefix(" ") for text in texts]
    word = np.array([bool(text) and str(text).isalpha() for text in bare])
    offsets, _ = spell_tokens(source, target)
    return Words(
        word=word,
        spaced=word & np.array([text is not None and text[:1] == " " for text in texts]),
        spelled=word & (np.diff(offsets) > 1),
        opens=np.array([text is None or text[:1].isalpha() for text in texts]),
        closes=np.array([text is None or text[-1:].isalpha() for text in texts]),
    )


def _text(data: bytes) -> str | None:
    """What a token says; None where it is a piece of a character."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


class _Place(NamedTuple):
    """A whole word of a row that may be replaced."""

    token: int
    part: Part
    start: int  # bytes of the part's text
    end: int


class Rewording:
    """Puts other words into rows: what the teacher might say there and the student must spell.

    Words that a student's tokenizer has no token for are where most of its distance from the
    teacher is: it has to say them in pieces, and each of them is rare. So a share of the words of a
    row, drawn at random, is replaced by such words, drawn from what the teacher expects at that
    place. The teacher reads the new row as any other: what it teaches there is what it thinks.

    Args:
        teacher: with its own tokenizer.
        target: the student's tokenizer.
        share: of the words that are replaced, from 0 to 1.
        seed: of the draws. Those of a row depend on its own tokens and this number alone.
        loss_on: as in training; only what is taught is changed.
        max_length: tokens of the teacher that are read of a row.
        chat_template_kwargs: arguments of the teacher's chat template.

    Raises:
        ConfigError: the share is not from 0 to 1.

    Source: this project; measured in docs/decisions/0014-rewording.md. Replacing words by what a
    model expects is contextual augmentation (arXiv:1805.06201), there for classifiers.

    Example:
        ```python
        rewording = Rewording(teacher, text_encoder(student_tokenizer), share=0.2)
        rows = rewording.dataset(rows)
        ```
    """

    def __init__(
        self,
        teacher: LocalTeacher,
        target: TextEncoder,
        share: float,
        *,
        seed: int = 0,
        loss_on: LossOn = "all",
        max_length: int = 1024,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"reword must be from 0 to 1, a share of words; got {share}")
        self.teacher, self.target, self.share, self.seed = teacher, target, share, seed
        self.loss_on: LossOn = loss_on
        self.max_length = max_length
        self.chat_template_kwargs = chat_template_kwargs
        self.words = words(teacher.encoder, target)
        drawn = self.words.spelled & np.stack([~self.words.spaced, self.words.spaced])
        self._drawn = torch.from_numpy(drawn)

    @property
    def settings(self) -> tuple[object, ...]:
        """What decides the words, beside the rows, the teacher and both tokenizers."""
        template = sorted((self.chat_template_kwargs or {}).items())
        return self.share, self.seed, self.loss_on, self.max_length, template

    def dataset(self, rows: Dataset, cache: Path | None = None) -> Dataset:
        """The rows of a data set with other words in them; columns stay as they are.

        Args:
            rows: as `crosstill.text.rows` describes them.
            cache: a file that keeps what is made; where it exists, it is what is given. Its name
                has to tell it from what other rows, models or settings make.
        """
        if cache is not None:
            cache.parent.mkdir(parents=True, exist_ok=True)

        def change(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
            count = len(next(iter(columns.values())))
            found = self.rows([{k: v[i] for k, v in columns.items()} for i in range(count)])
            return {key: [row[key] for row in found] for key in columns}

        return rows.map(
            change,
            batched=True,
            batch_size=ROWS_AT_A_TIME,
            cache_file_name=None if cache is None else str(cache),
            load_from_cache_file=cache is not None,
            # else the model is hashed, weight by weight
            new_fingerprint=uuid4().hex if cache is None else cache.stem,
            desc="the teacher puts in words to spell",
        )

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """These rows with other words in them; a row that cannot be read stays as it is."""
        found = [dict(row) for row in rows]
        read = [(place, self._render(row)) for place, row in enumerate(found)]
        readable = [(place, side) for place, side in read if side is not None]
        readable.sort(key=lambda entry: len(entry[1].ids), reverse=True)
        for batch in padded_batches(readable, TOKENS_AT_A_TIME):
            chosen = [self._chosen(side) for _, side in batch]
            drawn = self._draw([side for _, side in batch], chosen)
            for (row, _), places, tokens in zip(batch, chosen, drawn, strict=True):
                found[row] = self._changed(found[row], places, tokens)
        return found

    def _render(self, row: Mapping[str, Any]) -> Rendered | None:
        try:
            return render(
                row,
                self.teacher.encoder,
                loss_on=self.loss_on,
                chat_template_kwargs=self.chat_template_kwargs,
            )
        except RowFault:  # who trains on it counts it
            return None

    # --- which words ----------------------------------------------------------------------------

    def _chosen(self, side: Rendered) -> list[_Place]:
        """The words of a row that are replaced, from left to right."""
        draws = np.random.default_rng(_seed(side, self.seed))
        places = _whole_words(side, self.words, min(self.max_length, len(side.ids)))
        return [place for place in places if draws.random() < self.share]

    # --- which words instead --------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, sides: list[Rendered], chosen: list[list[_Place]]) -> list[list[int]]:
        """A token for each chosen place."""
        if not any(chosen) or not self._drawn.any():
            return [[] for _ in sides]
        signal = self.teacher(cast(Any, _batch(sides, self.max_length)))
        found = []
        for row, (side, places) in enumerate(zip(sides, chosen, strict=True)):
            before = torch.tensor([place.token - 1 for place in places], dtype=torch.long)
            logits = signal.rows(torch.full_like(before, row), before).float().cpu()
            spaced = self.words.spaced[[side.ids[place.token] for place in places]]
            allowed = self._drawn[torch.from_numpy(spaced.astype(np.int64))][:, : logits.shape[1]]
            draws = torch.Generator().manual_seed(_seed(side, self.seed + 1))
            found.append(_sample(logits, allowed, draws))
        return found

    def _changed(
        self, row: dict[str, Any], places: list[_Place], tokens: list[int]
    ) -> dict[str, Any]:
        """A row with these tokens at these places."""
        parts: dict[int, tuple[Part, list[tuple[int, int, bytes]]]] = {}
        for place, token in zip(places, tokens, strict=False):
            if token >= 0:
                piece = self.teacher.encoder.bytes.spell([token])
                edits = parts.setdefault(id(place.part), (place.part, []))[1]
                edits.append((place.start, place.end, piece))
        for part, edits in parts.values():
            row = _with_text(row, part, _edited(part.text, edits))
        return row


def _seed(side: Rendered, seed: int) -> int:
    """A seed for a row, of its own tokens and another seed."""
    tokens = np.array([seed, *side.ids], np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(tokens, digest_size=7).digest(), "little")


def _whole_words(side: Rendered, words: Words, length: int) -> list[_Place]:
    """Words among the first tokens of a row that are one token, with the bytes they stand in."""
    ids = np.array(side.ids[:length], np.int64)
    if len(ids) < 2:
        return []
    ends = side.byte_ends[:length]
    starts = np.concatenate([[0], ends[:-1]])
    open_left = words.spaced[ids[1:]] | ~words.closes[ids[:-1]]
    open_right = np.append(~words.opens[ids[1:]], length == len(side.ids))[1:]
    whole = words.word[ids[1:]] & open_left & open_right
    whole &= (ends - starts)[1:] == side.encoder.bytes.lengths[ids[1:]]
    found = []
    for part in side.parts:
        if part.kind == "content" and part.supervised and not part.rewritten:
            inside = whole & (starts[1:] >= part.start) & (ends[1:] <= part.end)
            found += [
                _Place(token, part, int(starts[token]) - part.start, int(ends[token]) - part.start)
                for token in (np.flatnonzero(inside) + 1).tolist()
            ]
    return found


def _batch(sides: list[Rendered], max_length: int) -> dict[str, Int64[Tensor, "B T"]]:
    """The rows as a teacher reads them, padded on the right."""
    rows = [side.ids[:max_length] for side in sides]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return {"teacher_input_ids": ids, "teacher_attention_mask": mask}


def _sample(logits: Tensor, allowed: Tensor, draws: torch.Generator) -> list[int]:
    """One of the allowed ids for each row; -1 where none is."""
    if not len(logits):
        return []
    none = ~allowed.any(1, keepdim=True)
    chances = logits.masked_fill(~(allowed | none), -torch.inf).softmax(1)
    found = torch.multinomial(chances, 1, generator=draws)
    return found.masked_fill(none, -1)[:, 0].tolist()


def _edited(text: str, edits: list[tuple[int, int, bytes]]) -> str:
    """A text with stretches of its bytes replaced; in order, none touches another."""
    data, found, at = text.encode(), b"", 0
    for start, end, piece in edits:
        found += data[at:start] + piece
        at = end
    return (found + data[at:]).decode()


def _with_text(row: dict[str, Any], part: Part, text: str) -> dict[str, Any]:
    """A row whose content at one part is this text."""

    def changed(content: str) -> str:
        return content[: part.offset] + text + content[part.offset + len(part.text) :]

    def message(turns: Sequence[Mapping[str, Any]], index: int) -> list[dict[str, Any]]:
        turns = [dict(turn) for turn in turns]
        return [
            {**turn, "content": changed(turn["content"])} if place == index else turn
            for place, turn in enumerate(turns)
        ]

    if row.get("messages") is not None:
        return {**row, "messages": message(row["messages"], part.message)}
    if row.get("prompt") is None or row.get("completion") is None:
        return {**row, "text": changed(row["text"])}
    plain = isinstance(row["prompt"], str)
    first = 1 if plain else len(row["prompt"])
    key = "prompt" if part.message < first else "completion"
    if plain:
        return {**row, key: changed(row[key])}
    index = part.message - (0 if key == "prompt" else first)
    return {**row, key: message(row[key], index)}
