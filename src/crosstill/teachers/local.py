"""A teacher in this process: frozen, and its logits never stand in memory as a whole."""

import logging

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.errors import ConfigError
from crosstill.functional.fused import head_logprobs
from crosstill.functional.scores import boundary_logmass, token_logprobs
from crosstill.heads import HeadSplit, split_head
from crosstill.objectives.base import PairBatch
from crosstill.teachers.signal import TokenSignal
from crosstill.text.encode import TextEncoder, text_encoder

logger = logging.getLogger(__name__)


class LocalTeacher:
    """Reads batches with a model of this process.

    The model is put in evaluation mode and its weights are frozen. Rows of its head beyond the
    tokenizer's ids get no probability.

    Args:
        model: A causal language model, in any float type.
        tokenizer: Its own fast tokenizer.

    Raises:
        ConfigError: Model and tokenizer do not belong together.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | TextEncoder
    ) -> None:
        encoder = text_encoder(tokenizer)
        self.vocab_size = known_ids("teacher", model, encoder)
        self.model = model.eval().requires_grad_(False)
        self.boundary_mask = torch.from_numpy(encoder.bytes.boundary())[: self.vocab_size]
        split = split_head(model)
        self.head = split if isinstance(split, HeadSplit) else None
        self.plain_reason = None if isinstance(split, HeadSplit) else split
        if self.plain_reason:
            logger.info("the teacher's logits are made as a whole: %s", self.plain_reason)

    @torch.no_grad()
    def __call__(self, batch: PairBatch) -> TokenSignal:
        """Computes the teacher's signal for a batch.

        Args:
            batch: With `teacher_input_ids` and `teacher_attention_mask`, `[B, Tt]`.

        Returns:
            The signal on the teacher's device; it means nothing where there is padding.
        """
        self.model.eval()
        device = self.model.device
        ids = batch["teacher_input_ids"].to(device)
        mask = batch["teacher_attention_mask"].to(device)
        boundary_mask = self._mask(device)
        if self.head is None:
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return TokenSignal(
                token_logprobs(logits, ids, vocab_size=self.vocab_size),
                boundary_logmass(logits, boundary_mask, self.vocab_size),
            )
        hidden = self.head.hidden(self.model, ids, mask)
        bias = self.head.bias
        logprob, boundary = head_logprobs(
            hidden,
            self.head.weight[: self.vocab_size],
            ids,
            boundary_mask,
            bias=None if bias is None else bias[: self.vocab_size],
            logit_scale=self.head.logit_scale,
            softcap=self.head.softcap,
            needed=mask.bool(),
        )
        return TokenSignal(logprob, boundary)

    def to(self, device: torch.device) -> "LocalTeacher":
        """Moves the model to a device."""
        self.model.to(device)  # type: ignore[arg-type]
        return self

    def _mask(self, device: torch.device) -> Tensor:
        if self.boundary_mask.device != device:
            self.boundary_mask = self.boundary_mask.to(device)
        return self.boundary_mask


def known_ids(side: str, model: PreTrainedModel, encoder: TextEncoder) -> int:
    """Counts the ids that a model and its tokenizer share: the rest gets no probability.

    A head may be padded with surplus rows. A tokenizer may know a few special tokens more than the
    model (of its siblings that see images, say); an ordinary token without a row is an error.

    Raises:
        ConfigError: Model and tokenizer do not belong together.
    """
    embeddings = model.get_input_embeddings()
    if not isinstance(embeddings, nn.Embedding):
        return encoder.vocab_size
    rows = embeddings.num_embeddings
    without_row = encoder.bytes.lengths[rows:]
    if (without_row > 0).any():
        raise ConfigError(
            f"the {side}'s tokenizer has {encoder.vocab_size} ids and its model {rows} embeddings: "
            f"they do not belong together. Give the tokenizer of this model."
        )
    return min(rows, encoder.vocab_size)
