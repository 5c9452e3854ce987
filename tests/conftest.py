"""Fixtures of all tests."""

import ast
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from hcformer_mm.datasets.shapes_writer import write_shapes

# Property-based tests draw the same examples in every run; --hypothesis-profile=slow draws more.
settings.register_profile(
    "quick",
    derandomize=True,
    deadline=None,
    max_examples=10,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("slow", settings.get_profile("quick"), max_examples=500)
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def quick_config_dumps():
    """MMEngine's dumps of configs are checked, but not laid out, which takes seconds per runner."""

    def check(text, **_):
        ast.parse(text)
        return text, True

    with patch("yapf.yapflib.yapf_api.FormatCode", check):
        yield


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A Shapes set of three images a split, of 72 × 96 pixels; tests only read it."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, num_train=3, num_val=3, size=(72, 96), workers=1)
    return root
