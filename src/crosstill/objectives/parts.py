"""Learnable parts of objectives."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosstill.functional.numerics import accumulation_dtype


def linear(
    inputs: int, outputs: int, *, bias: bool, seed: int, like: Float[Tensor, "..."]
) -> nn.Linear:
    """Make a linear layer with torch's default initialisation from a seed of its own.

    The global generator is neither read nor moved, so every process of a run makes the same layer.

    Args:
        inputs: size of what it is applied to.
        outputs: size of what it gives.
        bias: whether it has one.
        seed: of its numbers.
        like: gives the device, and float64 if it is; else the layer is float32.

    Example:
        >>> linear(4, 2, bias=True, seed=0, like=torch.zeros(1)).weight.shape
        torch.Size([2, 4])
    """
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=accumulation_dtype(like), device="meta")
    layer = layer.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    bound = inputs**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer.to(like.device)


def projected(states: Float[Tensor, "*rows D"], layer: nn.Module) -> Float[Tensor, "*rows E"]:
    """Apply a layer to states, in the layer's own dtype.

    Example:
        >>> layer = linear(4, 2, bias=True, seed=0, like=torch.zeros(1))
        >>> projected(torch.zeros(3, 4, dtype=torch.bfloat16), layer).dtype
        torch.float32
    """
    return layer(states.to(layer.get_parameter("weight").dtype))
