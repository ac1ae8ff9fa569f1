"""Optimizer, scheduler and random state as safetensors and JSON: no pickle is written or read.

A state is a tree of dicts, lists and tuples. Its tensors go to `NAME.safetensors`, the rest to
`NAME.json` with a mark where each tensor stood. Floats survive: JSON holds their shortest exact
form.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from crosstill.errors import CheckpointError

_TENSOR, _ARRAY, _TUPLE, _ITEMS = "__tensor__", "__array__", "__tuple__", "__items__"


def save_state(tree: Any, folder: Path, name: str) -> None:
    """Writes a tree of tensors, arrays and JSON values to `name.json` and `name.safetensors`.

    Raises:
        CheckpointError: The tree holds a value that neither format can keep exactly.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _pack(tree, tensors, name)
    (folder / f"{name}.json").write_text(json.dumps(skeleton), encoding="utf-8")
    save_file(tensors, folder / f"{name}.safetensors")


def load_state(folder: Path, name: str) -> Any:
    """Reads back what `save_state` wrote; tensors are on the CPU.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    try:
        skeleton = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / f"{name}.safetensors")
        return _unpack(skeleton, tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder / name}.json and .safetensors do not hold a saved state ({error}). "
            f"Resume from another checkpoint."
        ) from error


def _pack(value: Any, tensors: dict[str, torch.Tensor], path: str) -> Any:
    """Replaces tensors by marks, and what JSON would change by marked lists."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().cpu().contiguous()
        return {_TENSOR: path}
    if isinstance(value, np.ndarray):
        # safetensors has no plain place for uint32 in every version; int64 holds each of them.
        tensors[path] = torch.from_numpy(value.astype(np.int64))
        return {_ARRAY: path, "dtype": str(value.dtype)}
    if isinstance(value, dict):
        items = [[key, _pack(v, tensors, f"{path}.{key}")] for key, v in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return dict(items)
        return {_ITEMS: items}
    if isinstance(value, (list, tuple)):
        packed = [_pack(v, tensors, f"{path}.{i}") for i, v in enumerate(value)]
        return {_TUPLE: packed} if isinstance(value, tuple) else packed
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{path} is a {type(value).__name__}, which safetensors and JSON cannot keep; "
        f"use an optimizer or a scheduler whose state is made of tensors and numbers"
    )


def _unpack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ARRAY in value:
        return tensors[value[_ARRAY]].numpy().astype(value["dtype"])
    if _TUPLE in value:
        return tuple(_unpack(v, tensors) for v in value[_TUPLE])
    if _ITEMS in value:
        return {key: _unpack(v, tensors) for key, v in value[_ITEMS]}
    return {key: _unpack(v, tensors) for key, v in value.items()}
