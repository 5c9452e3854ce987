"""Fixtures of the tests of pipelines."""

import pytest

from tests.helpers.pipelines import write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """What the datasets of mmdet and mmseg hand to a pipeline; tests only read it."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))
