import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from hcformer_mm.checkpoints.safe_load import load_checkpoint


class Touch:
    """Something that, read as a pickle, leaves a file: what a hostile checkpoint would do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_reads_weights_and_logs(tmp_path):
    path = tmp_path / "checkpoint.pth"
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    content = dict(
        state_dict=dict(weight=torch.ones(2)),
        meta=dict(iter=3, dataset_meta=dict(classes=("disc",)), score=np.float64(0.5)),
        message_hub=dict(log_scalars=dict(loss=buffer)),
    )
    torch.save(content, path)
    read = load_checkpoint(path)
    assert torch.equal(read["state_dict"]["weight"], torch.ones(2))
    assert read["meta"]["dataset_meta"]["classes"] == ("disc",)
    assert read["message_hub"]["log_scalars"]["loss"].mean() == 1.5


@pytest.mark.parametrize("kept", [0, 100])
def test_damaged_files(kept, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"expected .*weights\.pth to be a whole file of torch"):
        load_checkpoint(path)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere.pth"):
        with pytest.raises(FileNotFoundError, match="no such checkpoint"):
            load_checkpoint(path)


def test_refuses_code(tmp_path):
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    torch.save(dict(state_dict={}, extra=Touch(trace)), path)
    with pytest.raises(ValueError, match=r"expected .*checkpoint\.pth to hold weights"):
        load_checkpoint(path)
    assert not trace.exists()


class Chain:
    """From a log's method to its module's globals: what an allowed ``getattr`` would open."""

    def __reduce__(self):
        return getattr, (HistoryBuffer.__init__, "__globals__")


class Constructor:
    """``getattr`` on the right class, but of no statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


@pytest.mark.parametrize("attack", [Chain, Constructor])
def test_refuses_getattr_of_anything_but_statistics(tmp_path, attack):
    path = tmp_path / "checkpoint.pth"
    torch.save(dict(state_dict={}, extra=attack()), path)
    with pytest.raises(ValueError, match="to hold weights"):
        load_checkpoint(path)


@pytest.mark.parametrize("attack", [Touch, Constructor])
def test_tools_refuse_code(tmp_path, attack):
    """Where the host would fall back to running it, or lists ``getattr`` as safe."""
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    torch.save(dict(state_dict={}, extra=attack(trace) if attack is Touch else attack()), path)
    script = (
        "import sys; from hcformer_mm.checkpoints.safe_load import read_weights_only; "
        "from mmengine.runner.checkpoint import load_checkpoint; from torch import nn; "
        "read_weights_only(); load_checkpoint(nn.Linear(1, 1), sys.argv[1])"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True)
    assert result.returncode != 0
    assert pickle.UnpicklingError.__name__ in result.stderr.decode()
    assert not trace.exists()
