"""The transformer blocks of a language model, whatever its family calls them."""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._functorch import config as functorch

from crosstill.errors import ConfigError
from crosstill.heads import under_adapters

FORMS = 64
"""In which a block may be compiled: of each model, with and without gradient, autocast, padding."""

KEEPS = "crosstill-keeps-activations"
"""Mark of compiled code whose backward pass may be run again."""

PLAIN = "eager"
"""The attention that compiles on a processor, as transformers calls it."""

LONG = 512
"""Tokens of a row beyond which it would keep too much: for each head the row's length squared."""

COMPILERS = ("c++", "g++", "clang++")
"""One of which `torch.compile` needs on a processor, unless the environment's CXX names another."""


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


def compile_blocks(model: nn.Module, device: torch.device, *, longest: int = 0) -> None:
    """Compiles each transformer block of a model, in place; the model stays what it is otherwise.

    Between its products a block spends most of its time in norms, rotations and casts, each a pass
    over memory; compiled, they are few. One block's code serves all, so the first step takes a
    minute longer, not many. On a processor attention is the plain one then, which compiles: the
    fused one's backward pass is slow for short rows. For long ones the model keeps its own.

    Args:
        model: a causal language model, or a PEFT model round one.
        device: where it will run.
        longest: tokens of the longest row that it is trained on.

    Raises:
        ConfigError: there is no compiler, or the blocks cannot be found.

    Example:
        ```python
        compile_blocks(model, torch.device("cpu"))
        ```
    """
    blocks = _compilable(model, device)
    _keep_activations()
    if _plain_is_better(device, longest):
        _set_attention(model, PLAIN)
    for block in blocks:
        block.compile(dynamic=True)


@contextmanager
def compiled_blocks(
    models: Sequence[nn.Module], device: torch.device, *, longest: int = 0
) -> Iterator[None]:
    """Has the blocks of models compiled as long as it is entered, and leaves them as they were.

    Hooks of a block run outside its code, so `states_after` works within. Otherwise as
    `compile_blocks`.

    Args:
        models: causal language models.
        device: where they will run.
        longest: tokens of the longest row that they are trained on.

    Raises:
        ConfigError: there is no compiler, or the blocks cannot be found.

    Example:
        ```python
        with compiled_blocks([model], torch.device("cpu")):
            states = states_after(model, block, ids, mask)
        ```
    """
    with ExitStack() as stack:
        for model in models:
            blocks = _compilable(model, device)
            if _plain_is_better(device, longest):
                config: Any = under_adapters(model).config
                stack.callback(_set_attention, model, config._attn_implementation)
                _set_attention(model, PLAIN)
            for block in blocks:
                block.forward = torch.compile(block.forward, dynamic=True)
                stack.callback(delattr, block, "forward")  # what the class has is seen again
        yield


def _compilable(model: nn.Module, device: torch.device) -> nn.ModuleList:
    """The blocks of a model, where there is all it takes to compile them."""
    if missing := missing_compiler(device):
        raise ConfigError(f"compile_blocks is true, but {missing}; or set compile_blocks: false")
    blocks = transformer_blocks(model)
    if blocks is None:
        raise ConfigError(
            f"compile_blocks is true, but no list of blocks was found in {type(model).__name__}: "
            "set compile_blocks: false"
        )
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, FORMS)
    return blocks


def _plain_is_better(device: torch.device, longest: int) -> bool:
    return device.type == "cpu" and longest <= LONG


def _set_attention(model: nn.Module, name: str) -> None:
    under_adapters(model).set_attn_implementation(name)  # type: ignore[operator]


def _keep_activations() -> None:
    """Has compiled backward passes leave what they read as it was.

    What balances objectives goes through a backward pass once for each of them. PyTorch's cache on
    disk does not tell code that overwrites from code that does not, so ours is marked there.
    """
    functorch.donated_buffer = False
    cache = torch.compiler.config
    if not cache.cache_key_tag.endswith(KEEPS):
        cache.cache_key_tag += KEEPS


def missing_compiler(device: torch.device) -> str:
    """What to install where `torch.compile` cannot work on a device; empty where it can."""
    if device.type != "cpu":
        return "" if importlib.util.find_spec("triton") else "triton is not installed: install it"
    given = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((given,) if given else COMPILERS)):
        return f"there is no C++ compiler ({', '.join(COMPILERS)}): install one"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "the headers of Python are missing: install them (python3-dev)"
    return ""


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
