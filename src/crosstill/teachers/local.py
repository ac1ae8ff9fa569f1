"""A teacher in this process: frozen, and its logits never stand in memory as a whole."""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from crosstill.heads import HeadSplit, split_head
from crosstill.objectives.base import PairBatch
from crosstill.pair import known_ids
from crosstill.teachers.signal import LogitSignal, StateSignal
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
        self.encoder = encoder
        self.vocab_size = known_ids("teacher", model, encoder)
        self.model = model.eval().requires_grad_(False)
        self.boundary_mask = torch.from_numpy(encoder.bytes.boundary())[: self.vocab_size]
        split = split_head(model)
        self.head = split if isinstance(split, HeadSplit) else None
        self.plain_reason = None if isinstance(split, HeadSplit) else split
        if self.plain_reason:
            logger.info("the teacher's logits are made as a whole: %s", self.plain_reason)

    @torch.no_grad()
    def __call__(self, batch: PairBatch, layers: tuple[int, ...] = ()) -> StateSignal | LogitSignal:
        """Computes the teacher's signal for a batch.

        Args:
            batch: With `teacher_input_ids` and `teacher_attention_mask`, `[B, Tt]`.
            layers: Indices of hidden states that an objective reads; 0 is the embedding.

        Returns:
            The signal on the teacher's device; it means nothing where there is padding. What it
            says of tokens and rows is made when it is first asked for.
        """
        self.model.eval()
        device = self.model.device
        ids = batch["teacher_input_ids"].to(device)
        mask = batch["teacher_attention_mask"].to(device)
        boundary_mask = self._mask(device)
        if self.head is None:
            outputs = self.model(
                input_ids=ids,
                attention_mask=mask,
                use_cache=False,
                output_hidden_states=bool(layers),
            )
            states = {index: outputs.hidden_states[index] for index in layers}
            logits = outputs.logits[..., : self.vocab_size]
            return LogitSignal(logits, ids, boundary_mask, states)
        hidden, states = self.head.states(self.model, ids, mask, layers)
        matrix = self.head.matrix(self.vocab_size)
        return StateSignal(hidden, matrix, ids, mask.bool(), boundary_mask, states)

    def to(self, device: torch.device) -> "LocalTeacher":
        """Moves the model to a device."""
        self.model.to(device)  # type: ignore[arg-type]
        return self

    def _mask(self, device: torch.device) -> Tensor:
        if self.boundary_mask.device != device:
            self.boundary_mask = self.boundary_mask.to(device)
        return self.boundary_mask
