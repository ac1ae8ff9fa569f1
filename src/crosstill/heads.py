"""The output head of a language model, apart from its body.

Distillation needs a few numbers for each token and never the whole row of logits. With the hidden
states and the head's weights apart, those numbers are made block by block and a `T x V` matrix
never exists. Not every model can be split: then the answer says why, and the plain form is used.

The hidden states are taken where they enter the head, by a hook on the head itself, while the whole
model runs through its own `forward`: so adapters, autocast, gradient checkpointing and data
parallel wrappers act as always, and whatever a model does between its last norm and its head is
included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_peft_available

from crosstill.functional.head import HeadMatrix, row_logits

# Largest difference between the split and the plain logits, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class HeadSplit:
    """A language model's head: `logits = softcap(logit_scale * (hidden @ weight.T + bias))`.

    Attributes:
        linear: The head itself; its weight is `[V, D]`.
        logit_scale: Factor on the logits (Cohere multiplies, Granite divides); no unit.
        softcap: `softcap * tanh(logits / softcap)` bounds the logits (Gemma); None where unused.
    """

    linear: nn.Linear
    logit_scale: float = 1.0
    softcap: float | None = None

    @property
    def weight(self) -> Tensor:
        """The head's matrix `[V, D]`, V with surplus rows."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """The head's bias `[V]`, or None."""
        return self.linear.bias

    def hidden(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B T D"]:
        """Computes what enters the head, `[B, T, D]`.

        Args:
            model: The model this head was split from, wrapped or not.
            input_ids: Token ids.
            attention_mask: 1 where there is a token, 0 where there is padding.
        """
        return self.states(model, input_ids, attention_mask)[0]

    def states(
        self,
        model: nn.Module,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        layers: tuple[int, ...] = (),
    ) -> tuple[Float[Tensor, "B T D"], dict[int, Float[Tensor, "B T D"]]]:
        """Computes what enters the head, and the hidden states of some layers by index.

        Args:
            model: The model this head was split from, wrapped or not.
            input_ids: Token ids.
            attention_mask: 1 where there is a token, 0 where there is padding.
            layers: Indices into transformers' `hidden_states`: 0 is the embedding.
        """
        with _taken_before(self.linear) as taken:
            outputs = model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                output_hidden_states=bool(layers),
            )
        if len(taken) != 1:
            raise RuntimeError(
                f"the head ran {len(taken)} times in one forward pass, expected once"
            )
        return taken[0], {index: outputs.hidden_states[index] for index in layers}

    def matrix(self, vocab_size: int | None = None) -> HeadMatrix:
        """The head by its parts, as they stand now, without the surplus rows."""
        bias = None if self.bias is None else self.bias[:vocab_size]
        return HeadMatrix(self.weight[:vocab_size], bias, self.logit_scale, self.softcap)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Computes the logits `[B, T, V]` from what enters the head: the plain form."""
        return row_logits(hidden, self)


def split_head(model: nn.Module) -> HeadSplit | str:
    """Splits a causal language model into its body and its head, or says why it cannot be split.

    The split is verified on a few tokens: `logits(hidden(x))` must equal `model(x).logits`. A head
    with an adapter on it, a quantised head and a head with unknown post-processing are refused.

    Args:
        model: A causal language model, or a PEFT model round one.

    Returns:
        The head, or the reason as one line of text.
    """
    base = under_adapters(model)
    if not isinstance(base, PreTrainedModel):
        return f"{type(base).__name__} is not a transformers model"
    head = base.get_output_embeddings()
    if head is None:
        return f"{type(base).__name__} names no output embeddings"
    if type(head) is not nn.Linear:
        kind = type(head).__name__
        return f"the head of {type(base).__name__} is a {kind}, not a plain linear layer"
    split = HeadSplit(head, *_post_processing(base))
    difference = _difference(model, split)
    if isinstance(difference, str):
        return difference
    allowed = TOLERANCE.get(head.weight.dtype, 1e-4)
    if not difference <= allowed:
        return (
            f"the logits of {type(base).__name__} differ from head(body(x)) by {difference:.1e} of "
            f"the largest one (allowed {allowed:.0e}): it post-processes them in an unknown way"
        )
    return split


def under_adapters(model: nn.Module) -> nn.Module:
    """Returns the model itself where adapters were put on it."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            return model.get_base_model()
    return model


def _post_processing(model: PreTrainedModel) -> tuple[float, float | None]:
    """Reads (logit_scale, softcap) from the model's config, by the names that families use."""
    config = model.config.get_text_config().to_dict()
    scale = float(config.get("logit_scale") or 1.0)  # Cohere
    scale /= float(config.get("logits_scaling") or 1.0)  # Granite
    scale *= float(config.get("lm_head_multiplier") or 1.0)  # Falcon-H1
    softcap = config.get("final_logit_softcapping")  # Gemma
    return scale, None if softcap is None else float(softcap)


@contextmanager
def _taken_before(head: nn.Linear) -> Iterator[list[Tensor]]:
    """Collects what enters `head`, and lets the head itself work on the last position alone."""
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        taken.append(args[0])
        # Contiguous, or torch multiplies with a copy of the frozen matrix for every sequence.
        return (args[0][:, -1:].contiguous(), *args[1:])

    handle = head.register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


@torch.no_grad()
def _difference(model: nn.Module, split: HeadSplit) -> float | str:
    """Measures the largest difference of split and plain logits, relative to the largest logit."""
    device = split.weight.device
    vocabulary = split.weight.shape[0]
    input_ids = torch.tensor([[1, 7, 3, 5], [2, 1, 4, 6]], device=device) % vocabulary
    mask = torch.ones_like(input_ids)
    was_training = model.training
    model.eval()
    try:
        plain = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits.float()
        parts = split.logits(split.hidden(model, input_ids, mask)).float()
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        return f"{type(model).__name__} cannot run body and head apart: {error}"
    finally:
        model.train(was_training)
    if plain.shape != parts.shape:
        return f"the logits {tuple(plain.shape)} do not come from one head {tuple(parts.shape)}"
    return float((plain - parts).abs().max() / plain.abs().max().clamp(min=1e-6))
