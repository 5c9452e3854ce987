"""Fixtures for the tests of measures and metrics."""

import pytest

from tests.helpers.clustering_samples import write_samples


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A Shapes set with void and a crowd; tests only read it."""
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder
