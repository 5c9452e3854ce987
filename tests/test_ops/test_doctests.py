"""The examples in the docstrings of ``hcformer_mm.ops`` run."""

import doctest
import importlib
import pkgutil

import pytest

from hcformer_mm import ops

MODULES = [f"{ops.__name__}.{module.name}" for module in pkgutil.iter_modules(ops.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_operator_of_the_paper_has_an_example():
    operators = {name for name in ops.__all__ if name[0].islower()} - {"soft_assign_maps"}
    assert {name for name in operators if ">>>" in getattr(ops, name).__doc__} == operators
