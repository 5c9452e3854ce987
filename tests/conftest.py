"""Fixtures of all tests."""

import ast
from unittest.mock import patch

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_config_dumps():
    """MMEngine's dumps of configs are checked, but not laid out, which takes seconds per runner."""

    def check(text, **_):
        ast.parse(text)
        return text, True

    with patch("yapf.yapflib.yapf_api.FormatCode", check):
        yield
