"""JSON that every reader takes: numbers that are not finite become null."""

import json
import math
import os
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The same value with null in the place of NaN and infinities, which JSON does not have.

    >>> finite({"a": float("nan"), "b": (1, 2.5)})
    {'a': None, 'b': [1, 2.5]}
    """
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    text = json.dumps(finite(value), ensure_ascii=False, indent=1, default=str)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)
