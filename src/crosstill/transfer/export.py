"""Saving a model with its tokenizer, whole or not at all, so that plain transformers reads it."""

import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerFast

from crosstill import hub
from crosstill.errors import CheckpointError
from crosstill.text.parts import TORTURE
from crosstill.transfer.enriched import load_either, plain_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


def export(
    model: "PreTrainedModel",
    tokenizer: PreTrainedTokenizerFast,
    path: str | Path,
    *,
    verify: bool = True,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Save a model and its tokenizer as a Hugging Face folder: safetensors and JSON.

    An enriched byte model becomes a folder that `load_enriched` reads.

    The files are written beside their final place, read back and compared, and the folder is then
    renamed: an interrupted export leaves no half-written folder under the final name. What is
    already there is never deleted.

    Args:
        model: a causal language model. Merge an adapter first (`merge_and_unload`).
        tokenizer: its fast tokenizer.
        path: the folder; it must not exist, or be empty.
        verify: load the folder again and compare every number; needs memory for a second copy.
        files: texts to stand beside, by file name, such as a model card.

    Returns:
        The folder.

    Raises:
        CheckpointError: the folder exists with files in it, or what was read back differs.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(
            f"{path} exists and is not an empty folder; nothing there is overwritten. Give "
            f"another path, or move it away."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        for name, text in (files or {}).items():
            (draft / name).write_text(text, encoding="utf-8")
        if verify:
            _verify(model, tokenizer, draft)
        for file in sorted(draft.rglob("*")):
            _flush(file)
        _flush(draft)
        draft.replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _flush(path.parent)
    return path


def _verify(model: "PreTrainedModel", tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Read a folder back and compare tensors and the tokenizer with those in memory."""
    found = load_either(folder).state_dict()
    for name, value in model.state_dict().items():
        if name not in found or not torch.equal(found[name].cpu(), value.cpu()):
            raise CheckpointError(f"{folder}: the tensor {name} was not saved as it is in memory")
    theirs = hub.load_tokenizer(folder)
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(f"{folder}: the tokenizer was not saved as it is in memory")
    plain = plain_of(model) is model  # else AutoTokenizer finds no type of model to go by
    if (
        plain
        and type(tokenizer) is PreTrainedTokenizerFast
        and hub.rebuilds_tokenizer(folder, TORTURE)
    ):
        logger.warning(
            "transformers builds the tokenizer of a %s model anew, by rules of its own, and then "
            "reads other ids than the model was taught: load this one with "
            "PreTrainedTokenizerFast.from_pretrained, not with AutoTokenizer",
            model.config.model_type,
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
