"""The transformer blocks of a language model, whatever its family calls them."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from crosstill.heads import under_adapters


def block_count(model: nn.Module) -> int:
    """How many transformer blocks a model says it has."""
    base: Any = under_adapters(model)
    return base.config.get_text_config().num_hidden_layers


def transformer_blocks(model: nn.Module) -> nn.ModuleList | None:
    """The list of a model's blocks, the first one first; None where there is none to be found."""
    count = block_count(model)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


class _Reached(Exception):  # noqa: N818 - it is no error
    """The block whose output is wanted has run."""


def states_after(
    model: nn.Module, block: nn.Module, ids: Int[Tensor, "B T"], mask: Int[Tensor, "B T"]
) -> Float[Tensor, "B T D"]:
    """What a block makes of a batch; the blocks behind it are not run.

    Args:
        model: the whole model.
        block: one of its blocks.
        ids: tokens.
        mask: 1 where there is a token.
    """
    taken: list[Tensor] = []

    def take(module: nn.Module, inputs: Any, output: Any) -> None:
        taken.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = block.register_forward_hook(take)
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Reached:
        pass
    finally:
        handle.remove()
    return taken[0]
