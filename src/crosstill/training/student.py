"""The student's side of a step: its forward pass, the objectives on it, and its bits per byte."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from crosstill.errors import ConfigError
from crosstill.functional.fused import Head, HeadMatrix, head_logprobs
from crosstill.functional.losses import supervised_tokens
from crosstill.functional.scores import token_logprobs
from crosstill.heads import HeadSplit, split_head
from crosstill.objectives import Mix, MixLoss, PairBatch, StudentStates
from crosstill.objectives.mix import Weights
from crosstill.training import meters

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """What a forward pass of the student gave.

    Attributes:
        hidden: [B, Ts, D], what enters the head, with the fused form.
        logits: [B, Ts, V], with the plain form.
        states: Hidden states, where an objective reads them.
    """

    hidden: Float[Tensor, "B Ts D"] | None = None
    logits: Float[Tensor, "B Ts V"] | None = None
    states: StudentStates | None = None


class StudentStep:
    """Runs the student on a micro-batch and the objectives on what it gives.

    Args:
        mix: The objectives.
        model: The student, without wrappers of data parallelism.
        fused: True, False or "auto": whether its logits are made block by block.
        lengths: int64 [V], the bytes that each id spells.

    Raises:
        ConfigError: The fused form is demanded and cannot be; or an objective reads hidden states
            of a model that does not show them.
    """

    def __init__(
        self, mix: Mix, model: nn.Module, fused: bool | str, lengths: Int64[Tensor, " V"]
    ) -> None:
        self.mix, self._lengths = mix, lengths
        split = split_head(model)
        self.head = self._choose_head(split, fused)
        self._split = self._needed_split(split)
        self._alone = {name: mix.alone(name) for name in mix.objectives}

    def _choose_head(self, split: HeadSplit | str, fused: bool | str) -> HeadSplit | None:
        """The student's head, or None where the plain form is used; says why once."""
        if fused is False:
            return None
        if not self.mix.can_fuse:
            reason = f"the objectives {', '.join(self.mix.objectives)} have no fused form"
        elif isinstance(split, HeadSplit):
            return split
        else:
            reason = split
        if fused is True:
            raise ConfigError(f"fused_head is true, but {reason}. Set fused_head: auto")
        logger.warning("the student's logits are made as a whole, not block by block: %s", reason)
        return None

    def _needed_split(self, split: HeadSplit | str) -> HeadSplit | None:
        """The student's head where an objective reads hidden states: they are taken before it."""
        if not self.mix.keeps_hidden:
            return None
        if isinstance(split, HeadSplit):
            return split
        raise ConfigError(f"an objective reads the student's hidden states, but {split}")

    def forward(self, model: nn.Module, batch: PairBatch) -> Forward:
        """Runs the student on a micro-batch, wrapped or not."""
        ids, mask = batch["student_input_ids"], batch["student_attention_mask"]
        if self.head is not None:
            return Forward(hidden=self.head.hidden(model, ids, mask))
        if self._split is None:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return Forward(logits=logits)
        hidden, layers = self._split.states(model, ids, mask, self.mix.student_layers)
        return Forward(logits=self._split.logits(hidden), states=StudentStates(hidden, layers))

    def loss(
        self, done: Forward, sample: Mapping[str, Any], weights: Weights | None = None
    ) -> MixLoss:
        """Computes the micro-batch's share of the step's loss."""
        return self._loss(self.mix, self.head, done, sample, weights)

    def loss_of(
        self, name: str, done: Forward, sample: Mapping[str, Any], *, frozen_head: bool = False
    ) -> MixLoss:
        """Computes the share of one objective, with weight 1 and a graph of its own.

        With the fused form this is one more run through the head. With `frozen_head` no gradient
        is made for the head itself.
        """
        head = self.head
        if head is not None and frozen_head:
            matrix = head.matrix()
            bias = None if matrix.bias is None else matrix.bias.detach()
            return self._loss(
                self._alone[name],
                replace(matrix, weight=matrix.weight.detach(), bias=bias),
                done,
                sample,
                None,
            )
        return self._loss(self._alone[name], head, done, sample, None)

    def _loss(
        self,
        mix: Mix,
        head: Head | HeadMatrix | None,
        done: Forward,
        sample: Mapping[str, Any],
        weights: Weights | None,
    ) -> MixLoss:
        asked = sample["batch"], sample["signals"], sample["counts"]
        if done.hidden is not None and head is not None:
            return mix.from_hidden(done.hidden, head, *asked, weights=weights)
        assert done.logits is not None  # noqa: S101 - one of the two forms has run
        return mix.from_logits(done.logits, *asked, states=done.states, weights=weights)

    @torch.no_grad()
    def add_bits(self, sums: meters.Sums, done: Forward, batch: PairBatch) -> None:
        """Adds the nats and bytes from which the student's bits per byte are made."""
        labels = batch["student_labels"]
        supervised = supervised_tokens(labels)
        # Special tokens are supervised too, and spell nothing: bits per byte leaves them out.
        lengths = self._lengths.to(labels.device)
        spelled = supervised & (lengths[labels.clamp(min=0)] > 0)
        scores = self._scores(done, batch["student_input_ids"], supervised)
        sums.add("measured_nats", -scores.masked_fill(~spelled, 0.0).sum())
        sums.add("measured_bytes", meters.supervised_bytes(labels, lengths, spelled))

    def _scores(self, done: Forward, ids: Tensor, supervised: Tensor) -> Tensor:
        if done.logits is not None:
            return token_logprobs(done.logits.detach(), ids, vocab_size=self.mix.vocab_size)
        assert done.hidden is not None  # noqa: S101 - one of the two forms has run
        assert self.head is not None  # noqa: S101 - and this is the one with a head
        return head_logprobs(
            done.hidden.detach(),
            self.head.weight,
            ids,
            None,
            bias=self.head.bias,
            logit_scale=self.head.logit_scale,
            softcap=self.head.softcap,
            vocab_size=self.mix.vocab_size,
            needed=torch.nn.functional.pad(supervised[:, 1:], (0, 1)),  # row t predicts t + 1
        )[0]
