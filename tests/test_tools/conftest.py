"""Fixtures that the tests of the tools share."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from hcformer_mm.apis.inference import build_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Save the untrained weights of a config of this project, once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def save(config):
        path = folder / f"{Path(config).stem}.pth"
        if not path.exists():
            model = build_model(Config.fromfile(ROOT / config))
            torch.save(dict(state_dict=model.state_dict()), path)
        return path

    return save


@pytest.fixture
def run_tool(monkeypatch):
    """Run a tool with a command line, in this process."""

    def run(tool, *arguments):
        path = str(ROOT / "tools" / tool)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return run
