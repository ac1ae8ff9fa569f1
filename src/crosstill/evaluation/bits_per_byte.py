"""Bits per byte: how well a model predicts text, on a scale that every tokenizer shares.

Perplexity per token cannot compare two models whose tokenizers differ: a tokenizer with longer
tokens has fewer and harder predictions. The number of bytes of a text does not depend on who reads
it. So the log-probabilities of all tokens are added up and divided by the bytes of the text: with
this code a compressor that uses the model would need so many bits for each byte.

What is counted:

- Every byte of the text, the first included: the text is conditioned on the beginning-of-text
  token if the tokenizer adds one by itself, else on the end-of-text token if there is one. If the
  tokenizer has neither, the first token has no likelihood and neither its nats nor its bytes count.
- The bytes of the text as it was given, in UTF-8. Where a tokenizer normalises the text (NFC ...),
  its model scores the normalised text, but the divisor stays the same for all models.

What is not:

- The end of the text. Predicting it is one more event, spread over no byte.
- Other ways to cut the same text into tokens. Each model scores its own canonical tokenization; the
  true probability of the bytes is the sum over all tokenizations, so the number is an upper bound.
- Rows of the output head that no token uses: they get no probability.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from crosstill.evaluation.prompts import Prompt, read
from crosstill.evaluation.scoring import Sequence, sequence_nats
from crosstill.pair import known_ids
from crosstill.text.encode import TextEncoder, text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    Tokenizer = PreTrainedTokenizerFast | TextEncoder

MAX_LENGTH = 2048
TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Scores:
    """What a model makes of texts.

    Attributes:
        nats: -log p of each text, float64 `[N]`.
        bytes: the bytes of each text that were scored, int64 `[N]`.
    """

    nats: np.ndarray
    bytes: np.ndarray

    @property
    def bits_per_byte(self) -> float:
        """Total bits over total bytes; nan where nothing was scored."""
        return bits(self.nats.sum(), self.bytes.sum())


def bits(nats: float, num_bytes: float) -> float:
    """Convert nats over some bytes to bits per byte; nan for no bytes.

    Example:
        >>> round(bits(nats=2.0794415, num_bytes=3), 6)
        1.0
    """
    return float(nats / np.log(2) / num_bytes) if num_bytes else float("nan")


def bits_per_byte(model: "PreTrainedModel", tokenizer: "Tokenizer", texts: Rows[str]) -> float:
    """Compute the bits per byte of a causal language model on texts.

    The sum of the bits of all texts over the sum of their bytes: long texts weigh more.

    Args:
        model: a causal language model of `transformers`, wrapped by PEFT or not.
        tokenizer: its own fast tokenizer.
        texts: plain texts; empty ones count nothing. Texts longer than 2048 tokens (8192 of a byte
            tokenizer; or than the model's window) are read in overlapping windows, each token
            scored once.

    Returns:
        Bits per byte, at least 0; nan where there is no byte to score.

    Raises:
        DataError: a text has characters that the tokenizer cannot spell.
        TokenizerError: the tokenizer's bytes cannot be read.

    Source: module docstring for what is counted; `score_texts` for the numbers of each text.
    """
    return score_texts(model, tokenizer, texts).bits_per_byte


def score_texts(
    model: "PreTrainedModel",
    tokenizer: "Tokenizer",
    texts: Rows[str],
    *,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Scores:
    """Compute nats and bytes of each text, as `bits_per_byte` counts them.

    Args:
        model: a causal language model.
        tokenizer: its own fast tokenizer.
        texts: plain texts.
        max_length: longest window in tokens, None for 2048 (or 8192 bytes); the model's own limit
            holds as well.
        tokens_per_batch: padded tokens that run at a time; memory grows with it.
    """
    return score(
        model,
        tokenizer,
        [("", text) for text in texts],
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
    )


def score(
    model: "PreTrainedModel",
    tokenizer: "Tokenizer",
    pairs: Rows[tuple[Prompt, str]],
    *,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Scores:
    """Compute nats and bytes of responses given their prompts.

    Prompt and response are one text and are tokenised together, as the model would read them. The
    tokens that end after the prompt's last byte count. A token that straddles the seam counts
    with its whole log-probability: it holds bytes of the response, and its share cannot be told.

    Args:
        model: a causal language model.
        tokenizer: its own fast tokenizer.
        pairs: (prompt, response). A prompt is plain text, or a list of chat messages, which goes
            through the model's own chat template up to where the assistant speaks.
        chat_template_kwargs: arguments of that template.
        max_length: longest window in tokens, None for 2048 (or 8192 bytes); the model's own limit
            holds as well.
        tokens_per_batch: padded tokens that run at a time; memory grows with it.

    Raises:
        ConfigError: chat messages, but the tokenizer has no chat template.
        DataError: a text has characters that the tokenizer cannot spell.
    """
    encoder = text_encoder(tokenizer)
    readings = [read(prompt, text, encoder, chat_template_kwargs) for prompt, text in pairs]
    # some architectures have no limit, and some give it another name behind this attribute
    asked = max_length or encoder.budget(MAX_LENGTH)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or asked
    nats = sequence_nats(
        model,
        [Sequence(reading.ids, reading.first, reading.lead) for reading in readings],
        vocab_size=known_ids("model", model, encoder),
        max_length=min(asked, limit),
        tokens_per_batch=tokens_per_batch,
    )
    return Scores(nats, np.array([reading.num_bytes for reading in readings], dtype=np.int64))
