"""The one way text becomes token ids: as content, from which no special token can come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from crosstill.errors import DataError
from crosstill.text.bytes import TokenBytes
from crosstill.text.normalize import Normalization, utf8
from crosstill.text.parts import fingerprint, tokenizer_parts
from crosstill.text.roles import SpecialRoles, special_roles

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


BYTES_PER_TOKEN = 4
"""How many tokens of a byte tokenizer go for one of another where a length is given in tokens.

Source: Minixhofer et al. 2025, arXiv:2503.20083, appendix C: 2,048 bytes beside 512 tokens.
"""


class TextEncoder:
    """A fast tokenizer as crosstill uses it: ids of content, the bytes they spell, and roles.

    Pickles as its tokenizer, and is taken apart again where it is unpickled.

    Attributes:
        tokenizer: The Hugging Face tokenizer, untouched.
        bytes: What each id spells.
        normalization: How text is rewritten before it is cut.
        roles: Special tokens by role.
        vocab_size: The largest id + 1; a model's own vocabulary may be padded beyond it.
        adds_bos: Whether the tokenizer's own post-processor puts its bos before a text.
        adds_eos: Whether it puts its eos behind a text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        """Takes a tokenizer apart; `text_encoder` does so once for each.

        Raises:
            TokenizerError: As for `token_bytes`.
        """
        parts = tokenizer_parts(tokenizer)
        self.tokenizer = tokenizer
        self.bytes: TokenBytes = parts.bytes
        self.normalization: Normalization = parts.normalization
        self.roles: SpecialRoles = special_roles(tokenizer)
        self.vocab_size = len(parts.bytes)
        around = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids
        self.adds_bos = tokenizer.bos_token_id is not None and around[:1] == [
            tokenizer.bos_token_id
        ]
        self.adds_eos = tokenizer.eos_token_id is not None and around[-1:] == [
            tokenizer.eos_token_id
        ]
        self._backend = parts.backend
        self._forbidden = parts.control - {parts.bytes.unknown_id}

    def __reduce__(self):
        return text_encoder, (self.tokenizer,)

    @property
    def bytewise(self) -> bool:
        """Whether every token that spells something spells one byte."""
        return bool(self.bytes.lengths.max(initial=0) == 1)

    def budget(self, length: int) -> int:
        """How many of its tokens may stand where others have `length`: four times it for bytes.

        A byte tokenizer takes about four times as many tokens for a text as one of subwords. With
        the same number it would see a quarter of the text, and so would a teacher beside it.
        """
        return length * BYTES_PER_TOKEN if self.bytewise else length

    def encode(self, text: str) -> list[int]:
        """The ids of a text as content: none is added, none is a special token.

        A string that looks like a special token is spelled out. Only the unknown token may occur;
        a row that holds it cannot be spelled (`bytes.unknown_id in ids`).

        Raises:
            DataError: The text holds a lone surrogate, or a byte that the tokenizer drops.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, as `encode` gives them.

        Raises:
            DataError: A text holds a lone surrogate, or a byte that the tokenizer drops.
        """
        try:
            rows = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                utf8(text)
            raise
        ids = [row.ids for row in rows]
        for text, row in zip(texts, ids, strict=True):
            if not self._forbidden.isdisjoint(row):
                raise self._made_special(text, row)
            if self.bytes.missing:
                self._refuse_dropped(text, row)
        return ids

    def _refuse_dropped(self, text: str, ids: list[int]) -> None:
        """Compares lengths alone, so that it costs next to nothing."""
        expected = len(self.normalization.prefix_of(text)) + len(self.normalization.spelled(text))
        if (ids and self.bytes.ends(ids)[-1] == expected) or not expected:
            return
        dropped = sorted(set(self.normalization.spelled(text)).intersection(self.bytes.missing))
        raise DataError(
            f"expected text that the tokenizer can spell, got {text[:80]!r} with "
            f"{', '.join(f'0x{byte:02X}' for byte in dropped)}, for which it has no token and "
            "which it drops: mend the row, or let bad rows be skipped."
        )

    def _made_special(self, text: str, ids: list[int]) -> DataError:
        token = self.tokenizer.convert_ids_to_tokens(min(self._forbidden.intersection(ids)))
        return DataError(
            f"expected no special token from user text, got {token!r} from {text[:80]!r}: the "
            "tokenizer's model itself makes it; mend the row, or let bad rows be skipped."
        )


def budgets(student: TextEncoder, teacher: TextEncoder, length: int) -> tuple[int, int]:
    """Tokens that a row may have on each side where `length` is asked for; see `budget`."""
    return student.budget(length), teacher.budget(length)


_ENCODERS: "WeakValueDictionary[tuple[int, int], TextEncoder]" = WeakValueDictionary()


def text_encoder(tokenizer: "PreTrainedTokenizerFast | TextEncoder") -> TextEncoder:
    """The encoder of a tokenizer, the same one while it is in use.

    Raises:
        TokenizerError: As for `token_bytes`.
    """
    if isinstance(tokenizer, TextEncoder):
        return tokenizer
    parts = tokenizer_parts(tokenizer)
    key = (id(parts), fingerprint(tokenizer))
    encoder = _ENCODERS.get(key)
    if encoder is None:
        encoder = _ENCODERS[key] = TextEncoder(tokenizer)
    return encoder
