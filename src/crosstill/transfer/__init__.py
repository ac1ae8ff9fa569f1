"""Putting a model on another tokenizer: initial embeddings, distillation from itself, export.

The names below are loaded when they are first used: whoever needs a transplant needs no trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstill.transfer.embeddings import transplant
    from crosstill.transfer.recipe import load_transfer, parse_transfer
    from crosstill.transfer.run import transfer
    from crosstill.transfer.target import target_tokenizer

__all__ = [
    "load_transfer",
    "parse_transfer",
    "target_tokenizer",
    "transfer",
    "transplant",
]

_HOME = {
    "load_transfer": "crosstill.transfer.recipe",
    "parse_transfer": "crosstill.transfer.recipe",
    "target_tokenizer": "crosstill.transfer.target",
    "transfer": "crosstill.transfer.run",
    "transplant": "crosstill.transfer.embeddings",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'crosstill.transfer' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return __all__
