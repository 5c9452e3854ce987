"""Publication of checkpoints."""

import hashlib
import os
import re

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from torch import nn
from torch.hub import HASH_REGEX

from hcformer_mm.apis.checkpoint import load_checkpoint
from hcformer_mm.apis.publish import publish
from hcformer_mm.version import __version__


def trained(path, **entries):
    """A checkpoint as MMEngine's runner leaves it."""
    weights = dict(weight=torch.arange(6.0).view(2, 3))
    meta = dict(
        cfg="model = dict()",
        dataset_meta=dict(classes=("disc", "box")),
        iter=7,
        time="20250101_000000",
        experiment_name="x_20250101",
        hook_msgs=dict(last_ckpt="/home/someone/work_dirs/iter_7.pth"),
    )
    optimizer = dict(state={0: dict(exp_avg=torch.zeros(1000))})
    hub = dict(log_scalars=dict(loss=HistoryBuffer([1.0], [1])))
    content = dict(meta=meta, state_dict=weights, optimizer=optimizer, message_hub=hub)
    torch.save({**content, **entries}, path)
    return path


def test_keeps_weights_classes_and_config(tmp_path):
    source = trained(tmp_path / "iter_7.pth", param_schedulers=[dict(last_step=7)])
    published = publish(source, tmp_path / "model.pth")
    content = load_checkpoint(published.path)
    assert set(content) == {"meta", "state_dict"}
    assert torch.equal(content["state_dict"]["weight"], torch.arange(6.0).view(2, 3))
    assert content["meta"] == dict(
        cfg="model = dict()",
        dataset_meta=dict(classes=("disc", "box")),
        iter=7,
        hcformer_mm_version=__version__,
    )
    assert set(published.left_out) == {
        "optimizer",
        "message_hub",
        "param_schedulers",
        "meta.time",
        "meta.experiment_name",
        "meta.hook_msgs",
    }
    assert not published.averaged
    assert published.path.stat().st_size < source.stat().st_size
    assert b"someone" not in published.path.read_bytes()


def test_the_name_ends_in_the_hash(tmp_path):
    source = trained(tmp_path / "iter_7.pth")
    path = publish(source, tmp_path / "hcformer_r50.pth").path
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"hcformer_r50-{digest[:8]}.pth"
    assert HASH_REGEX.search(path.name).group(1) == digest[:8]
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, "iter_7.pth"])
    # The same weights, published again and elsewhere.
    other = tmp_path / "other"
    other.mkdir()
    assert publish(source, other / "hcformer_r50.pth").path.name == path.name


class Runner:
    """As much of a runner as the hook looks at."""

    def __init__(self, model):
        self.model, self.iter, self.epoch, self._resume = model, 0, 0, False


def test_publishes_the_moving_average(tmp_path):
    """As the hook itself leaves it: the average in ``state_dict``."""
    runner = Runner(nn.Linear(1, 1, bias=False))
    nn.init.zeros_(runner.model.weight)
    hook = EMAHook(momentum=0.25)
    hook.before_run(runner)
    for value in (0.0, 8.0):
        nn.init.constant_(runner.model.weight, value)
        hook.after_train_iter(runner, 0)
    checkpoint = dict(state_dict=runner.model.state_dict())
    hook.before_save_checkpoint(runner, checkpoint)
    source = trained(tmp_path / "iter_2.pth", **checkpoint)
    published = publish(source, tmp_path / "model.pth")
    assert published.averaged
    assert "ema_state_dict" in published.left_out
    assert load_checkpoint(published.path)["state_dict"]["weight"].item() == 2.0
    assert runner.model.weight.item() == 8.0


def test_refuses(tmp_path):
    source = trained(tmp_path / "iter_7.pth")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.pth"):
        publish(source, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="in an existing folder"):
        publish(source, tmp_path / "no" / "model.pth")
    torch.save(dict(model={"weight": torch.zeros(1)}), source)
    with pytest.raises(ValueError, match=r"with weights in 'state_dict', got model"):
        publish(source, tmp_path / "model.pth")
    assert [name for name in os.listdir(tmp_path) if re.search("model", name)] == []
