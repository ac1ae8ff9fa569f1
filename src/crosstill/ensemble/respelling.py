"""A text that grows token by token of one tokenizer, in the tokens of another.

The text is always cut anew as a whole, back to the last special token: so the ids are what the
tokenizer itself writes for it. Bytes at the end that are no whole character yet are spelled by the
longest tokens that fit.
"""

from collections.abc import Sequence

import numpy as np

from crosstill.align.spellings import lowest_ids
from crosstill.errors import DataError
from crosstill.text.encode import TextEncoder


class Respeller:
    """Writes the pivot's tokens in those of another tokenizer."""

    def __init__(self, pivot: TextEncoder, own: TextEncoder, reading: np.ndarray) -> None:
        """Takes both tokenizers, and the own id of each of the pivot's (special ones count)."""
        self._pivot = pivot
        self._own = own
        self._reading = reading
        self._table = lowest_ids(own)
        self._longest = max(map(len, self._table), default=0)

    def ids(self, prompt: Sequence[int], read: Sequence[int]) -> list[int]:
        """The own ids of a prompt in own tokens and of the pivot's tokens behind it.

        A special token without a counterpart is left out.

        Raises:
            DataError: some bytes have no token.
        """
        special = self._own.bytes.special
        cut = next((k for k in range(len(prompt), 0, -1) if special[prompt[k - 1]]), 0)
        found, run = list(prompt[:cut]), self._own.bytes.spell(prompt[cut:])
        for id in read:
            if not self._pivot.bytes.special[id]:
                run += self._pivot.bytes.token(id)
                continue
            found += self._spelled(run)
            run = b""
            if self._reading[id] >= 0:
                found.append(int(self._reading[id]))
        return found + self._spelled(run)

    def _spelled(self, run: bytes) -> list[int]:
        """The tokenizer's own ids of some bytes where they are text, to the byte."""
        try:
            text, rest = run.decode(), b""
        except UnicodeDecodeError as error:
            text, rest = run[: error.start].decode(), run[error.start :]
        return [*self._text(text), *self._longest_first(rest)]

    def _text(self, text: str) -> list[int]:
        if not text:
            return []
        prefix = self._own.normalization.prefix.decode()
        # What the tokenizer puts before a text by itself is already there if the prompt was its.
        for candidate in (text.removeprefix(prefix), text):
            try:
                ids = self._own.encode(candidate)
            except DataError:  # a control character without a token
                continue
            if self._own.bytes.spell(ids) == text.encode():
                return ids
        return self._longest_first(text.encode())

    def _longest_first(self, data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            ends = range(min(at + self._longest, len(data)), at, -1)
            end = next((end for end in ends if data[at:end] in self._table), at)
            if end == at:
                raise DataError(
                    f"a model of the ensemble has no token for the bytes {data[at : at + 8]!r}: "
                    f"leave it out, or bring it to the others' tokens with `crosstill transfer`"
                )
            ids.append(self._table[data[at:end]])
            at = end
        return ids
