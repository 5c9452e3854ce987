"""Fixtures of all tests."""

import ast
from unittest.mock import patch

import hcformer_mm.utils.threads  # noqa: F401

import pytest
import torch
from hypothesis import HealthCheck, settings

from hcformer_mm.datasets.shapes_writer import write_shapes
from tests.helpers.devices import (
    DEVICE,
    DEVICES,
    NO_GPU,
    REPORT,
    full_float32,
    made_on,
    write_figures,
)

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


@pytest.fixture(params=DEVICES)
def run_device(request):
    """Each device that is there, for code that moves models and images to it by itself."""
    with full_float32():
        yield torch.device(request.param)


@pytest.fixture
def device(run_device):
    """Each device that is there; tensors and modules that a test makes are on it."""
    if run_device.type == "cpu":
        yield run_device
    else:
        with made_on(run_device):
            yield run_device


FIGURES = pytest.StashKey[dict]()


@pytest.fixture(scope="session")
def figures(request):
    """Tables of figures by title, each a list of rows, which are printed after all tests."""
    return request.config.stash.setdefault(FIGURES, {})


@pytest.fixture(scope="session")
def gpu():
    """The GPU, or the device that stands in for it."""
    if DEVICE is None:
        pytest.skip(NO_GPU)
    return torch.device(DEVICE)


def pytest_terminal_summary(terminalreporter, config):
    if tables := config.stash.get(FIGURES, None):
        terminalreporter.section(f"figures, also in {REPORT}/report.md and report.json")
        terminalreporter.write(write_figures(tables, config.rootpath / REPORT))
