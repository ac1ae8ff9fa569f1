"""Every run collects garbage once; without the modules' own objects that takes no time."""

import gc

import pytest

import tiny_training  # noqa: F401  (imports what must be frozen)


@pytest.fixture(scope="session", autouse=True)
def _frozen_modules():
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
