"""The seven real tokenizers, from the cache that `make tokenizers` fills."""

import os
from functools import cache
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

NAMES = ("llama3", "gemma3", "qwen3", "gpt4o", "deepseek_v3", "llama2", "gptoss")
_FILES = ("tokenizer.json", "tokenizer_config.json")


def cache_folder() -> Path:
    """Where `make tokenizers` and `make teacher` put what they fetch."""
    return Path(os.environ.get("CROSSTILL_CACHE") or Path.home() / ".cache" / "crosstill")


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """One of `NAMES`; the test is skipped where it was not fetched, and fails where CI=true."""
    folder = cache_folder() / "tokenizers" / name
    if not all((folder / file).is_file() for file in _FILES):
        reason = f"{folder} does not hold the tokenizer {name}: run `make tokenizers`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return PreTrainedTokenizerFast.from_pretrained(folder)
