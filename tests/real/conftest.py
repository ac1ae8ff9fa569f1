"""Fixtures for tests on real tokenizers and real text."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from real import tokenizers


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """Loads one of `real.tokenizers.NAMES`; skips where it was not fetched."""
    return tokenizers.real_tokenizer


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real text named by CROSSTILL_DATA."""
    named = os.environ.get("CROSSTILL_DATA")
    if not named:
        pytest.skip("CROSSTILL_DATA names no folder of real text")
    return Path(named)
