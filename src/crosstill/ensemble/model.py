"""Several causal language models that vote on every token, as one model of `transformers`.

The ensemble is a `PreTrainedModel` with the pivot's token ids: `forward` runs the members and mixes
their predictions, so greedy search, sampling, beams, streaming and stopping are those of
`transformers`. Its cache holds what each member remembers.

Axes: B sequences, N members, T tokens, P prompt tokens, V ids of the pivot.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from transformers import (
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from crosstill.ensemble.cache import EnsembleCache
from crosstill.ensemble.config import EnsembleConfig, ensemble_config, greedy_config
from crosstill.ensemble.members import (
    LockStepMember,
    Member,
    RereadingMember,
)
from crosstill.ensemble.mixing import Mix, checked_mix, checked_weights, mixed_logprobs
from crosstill.ensemble.prompts import left_padded, openings, stacked
from crosstill.ensemble.respelling import Respeller
from crosstill.ensemble.vocabulary import (
    CommonVocabulary,
    checked_vocabulary,
    common_vocabulary,
)
from crosstill.errors import ConfigError
from crosstill.evaluation.prompts import Prompt
from crosstill.pair import known_ids
from crosstill.text.encode import TextEncoder, text_encoder

if TYPE_CHECKING:
    from crosstill.ensemble.scoring import GreedyScores


class Ensemble(PreTrainedModel, GenerationMixin):
    """Several causal language models that vote on every token.

    Each member reads its own rendering of a prompt, with its own special tokens and chat template,
    and keeps its own key-value cache; what is written is common. The first model is the pivot: its
    token ids go in and come out. It reads and writes, and is not for training: all models are put
    in evaluation mode, and no gradients are kept.

    Args:
        models: causal language models of `transformers`, on any devices, in any float types.
        tokenizers: the fast tokenizer of each.
        weights: share of each model's vote, brought to sum one; equal ones by default. A model
            with weight zero is not run.
        mix: `probabilities` (arithmetic mean) or `log_probabilities` (geometric, renormalised).
        vocabulary: `identical` (the models must have the same tokens), `shared` (only tokens that
            spell the same bytes in all of them are written; each model's probabilities are those
            among them) or `mined` (other models' tokens count for the pivot's nearest by edit
            distance; they read the text again at every token, which costs a forward pass each and
            is there as a baseline).

    Attributes:
        members: the models that vote.
        encoders: the tokenizers, as crosstill uses them, the pivot's first.
        common: what can be written.
        weights: share of each model's vote.
        mix: how the votes are counted.

    Raises:
        ConfigError: no model, not one tokenizer a model, a bad weight, an unknown mix, or
            vocabularies that differ where they must not; the message names the tokens.
        TokenizerError: the bytes of a tokenizer cannot be read.

    Example:
        >>> ensemble = Ensemble([model, other], [tokenizer, other_tokenizer])  # doctest: +SKIP
        >>> ensemble.write(["Once upon a time"], max_new_tokens=20)  # doctest: +SKIP
    """

    config_class = EnsembleConfig
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(
        self,
        models: Sequence[PreTrainedModel],
        tokenizers: Sequence[PreTrainedTokenizerFast | TextEncoder],
        *,
        weights: Sequence[float] | None = None,
        mix: str = "probabilities",
        vocabulary: str = "identical",
    ) -> None:
        """Matches the vocabularies."""
        if not models or len(models) != len(tokenizers):
            raise ConfigError(
                f"expected at least one model and one tokenizer for each, got {len(models)} "
                f"models and {len(tokenizers)} tokenizers"
            )
        encoders = [text_encoder(tokenizer) for tokenizer in tokenizers]
        names = [_name(model, place) for place, model in enumerate(models, 1)]
        sizes = [
            known_ids(name, model, encoder)
            for name, model, encoder in zip(names, models, encoders, strict=True)
        ]
        common = common_vocabulary(encoders, sizes, checked_vocabulary(vocabulary), names)
        config = ensemble_config(models, encoders[0], common)
        super().__init__(config)
        self.generation_config = greedy_config(config)
        self.encoders = encoders
        self.common = common
        self.weights = checked_weights(weights, len(models))
        self.mix: Mix = checked_mix(mix)
        self.models = nn.ModuleList(models)
        self.members = [
            _member(model, encoders[0], encoder, common, place)
            for place, (model, encoder) in enumerate(zip(models, encoders, strict=True))
        ]
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where ids go in and logits come out: the pivot's device."""
        return self.members[0].model.device

    @property
    def dtype(self) -> torch.dtype:
        """The pivot's float type."""
        return self.members[0].model.dtype

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """None: every member has its own."""

    def get_output_embeddings(self) -> None:
        """None: every member has its own."""

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the members are whole already."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: an ensemble is its members.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("an ensemble has no weights of its own: save its members one by one")

    @torch.no_grad()
    def forward(
        self,
        input_ids: Int64[Tensor, "B T"],
        attention_mask: Int64[Tensor, "B S"] | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        prompt_ids: Int64[Tensor, "B N P"] | None = None,
        prompt_mask: Int64[Tensor, "B N P"] | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast:
        """Compute the log-probabilities of the mixture, without gradients.

        Args:
            input_ids: the pivot's ids; behind what the cache holds.
            attention_mask: 1 where there is a token; of all tokens so far, or of the new ones.
            past_key_values: the cache that an earlier call returned.
            use_cache: whether to return a cache.
            logits_to_keep: 1: only the last row of logits; 0: all.
            prompt_ids: each member's own ids in place of `input_ids`, flush right, as `encode`
                makes them; then only the last row of logits is returned.
            prompt_mask: 1 where they are.
            return_dict: only True is known.

        Returns:
            `logits` [B, T, V], nats of sum one, -inf for ids that cannot be written; and
            `past_key_values`.

        Raises:
            ConfigError: an id that a member has no token for, where it is not padding.
        """
        cache = past_key_values
        use_cache = bool(use_cache) or cache is not None
        cache = EnsembleCache(len(self.members)) if cache is None else cache
        if prompt_ids is None and not cache.length:
            self._check_readable(input_ids, attention_mask)
        found, weights = [], []
        for place, (member, state, weight) in enumerate(
            zip(self.members, cache.states, self.weights, strict=True)
        ):
            if not weight:
                continue
            if prompt_ids is not None and prompt_mask is not None and not cache.length:
                own, mask = _trimmed(prompt_ids[:, place], prompt_mask[:, place])
                row = member.begin(state, own, mask)
            else:
                last = logits_to_keep == 1
                row = member.step(state, input_ids, attention_mask, last=last, use_cache=use_cache)
            found.append(row.to(self.device))
            weights.append(weight)
        cache.length += input_ids.shape[1]
        return CausalLMOutputWithPast(
            logits=mixed_logprobs(found, weights, self.mix),  # type: ignore[arg-type]
            past_key_values=cache if use_cache else None,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Int64[Tensor, "B T"],
        past_key_values: EnsembleCache | None = None,
        attention_mask: Int64[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        prompt_ids: Int64[Tensor, "B N P"] | None = None,
        prompt_mask: Int64[Tensor, "B N P"] | None = None,
        **_kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next call of `forward`: what the cache does not hold yet."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
            "prompt_ids": None if seen else prompt_ids,
            "prompt_mask": None if seen else prompt_mask,
        }

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Generate as every model of `transformers` does; see `GenerationMixin.generate`.

        With `**ensemble.encode(prompts)` each member reads its own rendering of the prompts. With
        plain `input_ids` every member reads the same tokens, which is right for plain text.

        Returns:
            The pivot's ids: its prompts, and what was written.
        """
        if kwargs.get("use_cache") is False:
            if kwargs.get("prompt_ids") is not None:
                raise ConfigError("prompts of each member's own need use_cache=True")
        elif kwargs.get("past_key_values") is None:
            kwargs["past_key_values"] = EnsembleCache(len(self.members))
        return super().generate(inputs, **kwargs)  # type: ignore[misc]

    def encode(
        self,
        prompts: Sequence[Prompt],
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Render prompts for every member: the arguments of `generate`.

        Args:
            prompts: plain texts, or lists of chat messages that go through each member's own chat
                template up to where the assistant speaks.
            chat_template_kwargs: arguments of the templates.

        Returns:
            `input_ids` and `attention_mask` [B, T] of the pivot, flush right, and `prompt_ids` and
            `prompt_mask` [B, N, P] of all members.

        Raises:
            ConfigError: messages, but a member has no chat template; or nothing to begin with.
            DataError: a text cannot be spelled by a tokenizer.
        """
        if not prompts:
            raise ConfigError("expected at least one prompt, got none")
        found = openings(self.encoders, prompts, chat_template_kwargs)
        ids, mask = left_padded([opening[0] for opening in found])
        own, own_mask = stacked(found)
        arguments = {
            "input_ids": ids.masked_fill(mask == 0, self.config.pad_token_id),
            "attention_mask": mask,
            "prompt_ids": own,
            "prompt_mask": own_mask,
        }
        return {name: value.to(self.device) for name, value in arguments.items()}

    def write(self, prompts: Sequence[Prompt], **options: Any) -> list[str]:
        """Write a continuation of each prompt; see `crosstill.ensemble.writing.write`."""
        from crosstill.ensemble.writing import write

        return write(self, prompts, **options)

    def score(self, texts: Sequence[str | tuple[Prompt, str]], **options: Any) -> "GreedyScores":
        """Compute nats and bytes of texts; see `crosstill.ensemble.scoring.score`."""
        from crosstill.ensemble.scoring import score

        return score(self, texts, **options)

    def _check_readable(self, ids: Tensor, mask: Tensor | None) -> None:
        """Raise for an id that a member of another vocabulary has no token for."""
        real = torch.ones_like(ids, dtype=torch.bool)
        if mask is not None:
            real = mask[:, -ids.shape[1] :].bool()
        given = ids[real]
        if len(given) and (given.max() >= self.common.size or given.min() < 0):
            raise ConfigError(
                f"expected ids from 0 to {self.common.size - 1}, those of the first model's "
                f"tokenizer, got {int(given.max() if given.max() > 0 else given.min())}"
            )
        if self.common.kind != "shared":
            return
        for place, tokens in enumerate(self.common.members):
            reading = torch.from_numpy(tokens.reading).to(given.device)
            missing = given[reading[given] < 0]
            if len(missing) and self.weights[place]:
                token = self.encoders[0].tokenizer.convert_ids_to_tokens(int(missing[0]))
                raise ConfigError(
                    f"model {place + 1} has no token for {token!r} (id {int(missing[0])} of the "
                    f"first model): let each model read its own tokens, by `encode` and `score`"
                )


def _name(model: PreTrainedModel, place: int) -> str:
    return str(model.config._name_or_path or f"model {place}")


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Without the columns on the left that are padding in all rows."""
    start = int(mask.any(0).int().argmax())
    return ids[:, start:], mask[:, start:]


def _member(
    model: PreTrainedModel,
    pivot: TextEncoder,
    encoder: TextEncoder,
    common: CommonVocabulary,
    place: int,
) -> Member:
    tokens = common.members[place]
    if tokens.mined is None:
        return LockStepMember(model, common, tokens)
    return RereadingMember(model, common, tokens, Respeller(pivot, encoder, tokens.reading))
