"""The command line of ``tools/misc/publish_model.py``."""

import pytest
import torch

from hcformer_mm.checkpoints.io import load_checkpoint, sha256
from tests.helpers.tools import run_tool

TOOL = "tools/misc/publish_model.py"


def test_publishes(tmp_path):
    source = tmp_path / "iter_7.pth"
    weights = dict(weight=torch.ones(3))
    optimizer = dict(state={0: dict(exp_avg=torch.zeros(2**18))})
    torch.save(dict(state_dict=weights, meta=dict(iter=7), optimizer=optimizer), source)
    output = run_tool(TOOL, source, tmp_path / "hcformer_r50.pth")
    (path,) = tmp_path.glob("hcformer_r50-*.pth")
    assert path.stem.rpartition("-")[2] == sha256(path)[:8]
    assert torch.equal(load_checkpoint(path)["state_dict"]["weight"], torch.ones(3))
    assert "left out   optimizer" in output
    assert f"published  {path}: the weights, 0.0 MiB of 1.0 MiB" in output

    run_tool(TOOL, source, tmp_path / "half.pth", "--half")
    (path,) = tmp_path.glob("half-*.pth")
    assert load_checkpoint(path)["state_dict"]["weight"].dtype is torch.float16

    with pytest.raises(SystemExit, match=r"publish_model: no such checkpoint: .*none\.pth"):
        run_tool(TOOL, tmp_path / "none.pth", tmp_path / "x.pth")
