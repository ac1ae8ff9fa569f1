"""Fingerprints: short hashes by which a resumed run knows its data, tokenizers and models again."""

import hashlib
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_DIGITS = 16
_SAMPLE = 256


def data_fingerprint(dataset: Iterable[Any]) -> str:
    """Hashes all rows of a data set, in order.

    A data set without a length (a stream) cannot be read twice; its fingerprint is "stream".
    """
    digest = hashlib.sha256()
    if isinstance(dataset, Dataset):
        for batch in dataset.iter(batch_size=1000):
            digest.update(_canonical(batch))
        digest.update(str(len(dataset)).encode())
        return digest.hexdigest()[:_DIGITS]
    if not isinstance(dataset, torch.utils.data.Dataset) and not isinstance(dataset, list):
        return "stream"
    if isinstance(dataset, torch.utils.data.IterableDataset):
        return "stream"
    for index in range(len(dataset)):  # type: ignore[arg-type]
        digest.update(_canonical(dataset[index]))
    return digest.hexdigest()[:_DIGITS]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hashes all that decides which ids a text gets: the tokenizer file and its chat template."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # Set by whoever called the tokenizer last; they are no part of it.
    backend.pop("truncation", None)
    backend.pop("padding", None)
    specials = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    parts = [backend, tokenizer.chat_template, specials]
    return hashlib.sha256(_canonical(parts)).hexdigest()[:_DIGITS]


def model_fingerprint(model: PreTrainedModel) -> str:
    """Hashes a model's architecture and the first numbers of each of its weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        sample = weight.detach().flatten()[:_SAMPLE].to("cpu", torch.float32)
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def versions() -> dict[str, str]:
    """Versions of what decides the numbers of a run."""
    names = ("crosstill", "torch", "transformers", "tokenizers", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, default=str, ensure_ascii=True).encode()
