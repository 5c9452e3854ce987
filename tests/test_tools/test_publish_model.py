"""Publication on the command line, as a user runs it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import torch

from hcformer_mm.checkpoints.io import load_checkpoint

ROOT = Path(__file__).parents[2]


def publish(*arguments):
    command = [sys.executable, "tools/misc/publish_model.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_publishes(tmp_path):
    source = tmp_path / "iter_7.pth"
    weights = dict(weight=torch.ones(3))
    optimizer = dict(state={0: dict(exp_avg=torch.zeros(2**18))})
    torch.save(dict(state_dict=weights, meta=dict(iter=7), optimizer=optimizer), source)
    result = publish(source, tmp_path / "hcformer_r50.pth")
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("hcformer_r50-*.pth")
    assert path.stem.rpartition("-")[2] == hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert torch.equal(load_checkpoint(path)["state_dict"]["weight"], torch.ones(3))
    assert "left out   optimizer" in result.stdout
    assert f"published  {path}: the weights, 0.0 MiB of 1.0 MiB" in result.stdout

    result = publish(tmp_path / "none.pth", tmp_path / "x.pth")
    assert result.returncode == 1
    assert "publish_model: no such checkpoint" in result.stderr
    assert "Traceback" not in result.stderr
