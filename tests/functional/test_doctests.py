"""The examples in the docstrings of the functional layer and of the objectives run."""

import doctest
import importlib
import pkgutil

import pytest

import crosstill.functional
import crosstill.objectives

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (crosstill.functional, crosstill.objectives)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", [*MODULES, "crosstill.functional", "crosstill.objectives"])
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
