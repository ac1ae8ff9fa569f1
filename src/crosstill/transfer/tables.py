"""A model's two tables with a row for each token, read and written, tied or not.

Axes: V rows, D hidden.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstill.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Tables:
    """The numbers a model holds for each token of its vocabulary.

    Attributes:
        input: [V, D], the input embeddings.
        output: [V, D], the head's rows; None where they are the input embeddings (tied).
        bias: [V], the head's bias; None where it has none.
    """

    input: Float[Tensor, "V D"]
    output: Float[Tensor, "V D"] | None = None
    bias: Float[Tensor, " V"] | None = None

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The rows that make logits, tied or not."""
        return self.input if self.output is None else self.output

    def first(self, count: int) -> "Tables":
        """The first rows alone."""
        return Tables(
            self.input[:count],
            None if self.output is None else self.output[:count],
            None if self.bias is None else self.bias[:count],
        )


def read_tables(model: "PreTrainedModel") -> Tables:
    """Read a model's tables: all rows, with those beyond its tokenizer's ids, and no copy.

    The tensors are the model's own memory, detached: a change of the model in place shows in them
    (`write_tables` makes none, it gives the model new memory).

    Raises:
        ConfigError: the model has no plain embedding, or no plain linear head.
    """
    embedding, head = _modules(model)
    tied = head.weight is embedding.weight
    return Tables(
        embedding.weight.detach(),
        None if tied else head.weight.detach(),
        None if head.bias is None else head.bias.detach(),
    )


def write_tables(model: "PreTrainedModel", tables: Tables) -> None:
    """Give a model other tables, in place: as many rows as they have, tied or untied as they are.

    `vocab_size` and `tie_word_embeddings` in the model's configuration follow, so that what
    `save_pretrained` writes is loaded by plain transformers as it is in memory. The numbers are
    copied, and cast to the type of the model's. Weights stay trainable or frozen as they were.

    The position that the embedding treats as padding is forgotten: it was an id of the vocabulary
    before, and a token's row gets no gradient there.

    Raises:
        ConfigError: the tables do not fit the model or each other, or a tied head is asked of a
            family of models that knows none.
    """
    embedding, head = _modules(model)
    _check(tables, embedding, head)
    embedding.padding_idx = None
    trained = head.weight.requires_grad
    _set_tied(model, tables.output is None)
    model.resize_token_embeddings(len(tables.input), mean_resizing=False)
    embedding, head = _modules(model)
    if tables.output is not None and head.weight is embedding.weight:
        head.weight = nn.Parameter(torch.empty_like(embedding.weight), requires_grad=trained)
    if tables.output is None and head.weight is not embedding.weight:
        raise ConfigError(
            f"{type(model).__name__} knows no tied embeddings; give output rows of their own"
        )
    with torch.no_grad():
        # Fresh memory each time: what `read_tables` gave before stays as it was.
        embedding.weight.data = _like(tables.input, embedding.weight)
        if tables.output is not None:
            head.weight.data = _like(tables.output, head.weight)
        if tables.bias is not None:
            head.bias.data = _like(tables.bias, head.bias)


def _modules(model: "PreTrainedModel") -> tuple[nn.Embedding, nn.Linear]:
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(inputs, nn.Embedding) or not isinstance(outputs, nn.Linear):
        raise ConfigError(
            f"{type(model).__name__} has {type(inputs).__name__} and {type(outputs).__name__} as "
            f"embeddings and head; a plain table and a plain linear layer are expected"
        )
    return inputs, outputs


def _check(tables: Tables, embedding: nn.Embedding, head: nn.Linear) -> None:
    """Raise unless the tables fit each other and the model."""
    rows, width = tables.input.shape
    expected: dict[str, tuple[int, ...] | None] = {"input": (rows, embedding.weight.shape[1])}
    found: dict[str, tuple[int, ...] | None] = {"input": (rows, width)}
    if tables.output is not None:
        expected["output"] = (rows, head.weight.shape[1])
        found["output"] = tuple(tables.output.shape)
    if tables.bias is not None or head.bias is not None:
        expected["bias"] = None if head.bias is None else (rows,)
        found["bias"] = None if tables.bias is None else tuple(tables.bias.shape)
    wrong = [name for name in expected if expected[name] != found[name]]
    if wrong:
        raise ConfigError(
            "the tables do not fit the model: "
            + "; ".join(f"{n}: expected {expected[n]}, got {found[n]}" for n in wrong)
        )


def _set_tied(model: "PreTrainedModel", tied: bool) -> None:
    """Say in the configurations whether the head is the embeddings, and keep the mapping true."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    for config in configs.values():
        config.tie_word_embeddings = tied
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _like(values: Tensor, parameter: Tensor) -> Tensor:
    """A copy of the values with the type and on the device of a parameter."""
    return values.detach().to(parameter.device, parameter.dtype, copy=True).contiguous()
