"""crosstill teaches one language model from another, whatever their tokenizers.

The names below are loaded when they are first used, so that `import crosstill` and
`crosstill --help` need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crosstill import functional
    from crosstill.align.chunks import Alignment, align
    from crosstill.evaluation.bits_per_byte import bits_per_byte
    from crosstill.objectives import methods
    from crosstill.text.bytes import TokenBytes, token_bytes
    from crosstill.training.config import DistillConfig
    from crosstill.training.trainer import DistillTrainer

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "DistillConfig",
    "DistillTrainer",
    "TokenBytes",
    "align",
    "bits_per_byte",
    "functional",
    "methods",
    "token_bytes",
]

_HOME = {
    "Alignment": "crosstill.align.chunks",
    "DistillConfig": "crosstill.training.config",
    "DistillTrainer": "crosstill.training.trainer",
    "TokenBytes": "crosstill.text.bytes",
    "align": "crosstill.align.chunks",
    "bits_per_byte": "crosstill.evaluation.bits_per_byte",
    "methods": "crosstill.objectives",
    "token_bytes": "crosstill.text.bytes",
}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("crosstill.functional")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'crosstill' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return __all__
