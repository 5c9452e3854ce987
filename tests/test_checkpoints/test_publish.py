"""Publishing of checkpoints: what is kept, the name, and the config."""

import hashlib
import os
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer
from torch import nn
from torch.hub import HASH_REGEX

from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.checkpoints.publish import publish
from hcformer_mm.utils.config import find_config
from hcformer_mm.version import __version__

CONFIG = """
backend_args = None
data_root = 'data/coco/'
model = dict(
    type='HCFormer', scale=1e-05, sizes=(4, -1), names={'a.b': 1, 'c': dict({'d-e': None})})
train_dataloader = dict(dataset=dict(
    ann_file='/home/someone/data/coco/annotations/train.json',
    data_prefix=dict(img='/home/someone/data/coco/train/', seg='train/'),
    data_root='~someone/coco'))
test_evaluator = [dict(outfile_prefix='C:\\\\Users\\\\someone\\\\out')]
work_dir = '/home/someone/work_dirs/x'
load_from = '/home/someone/warm.pth'
resume = True
launcher = 'pytorch'
"""
PUBLISHED_CONFIG = dict(
    backend_args=None,
    data_root="data/coco/",
    model=dict(type="HCFormer", scale=1e-5, sizes=(4, -1), names={"a.b": 1, "c": {"d-e": None}}),
    train_dataloader=dict(
        dataset=dict(
            ann_file="train.json", data_prefix=dict(img="train/", seg="train/"), data_root="coco"
        )
    ),
    test_evaluator=[dict(outfile_prefix="out")],
)


def trained(path, **entries):
    """Save a checkpoint as MMEngine's runner does."""
    weights = dict(weight=torch.arange(6.0).view(2, 3))
    meta = dict(
        cfg=CONFIG,
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
    config = Config.fromstring(content["meta"].pop("cfg"), ".py")
    assert config.to_dict() == PUBLISHED_CONFIG
    assert content["meta"] == dict(
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
    assert publish(source, tmp_path / "hcformer_r50.pth").path == path  # the same bytes again


def test_publishes_the_moving_average(tmp_path):
    """EMAHook itself saves the average as ``state_dict``."""
    model = nn.Linear(1, 1, bias=False)
    runner = SimpleNamespace(model=model, iter=0, epoch=0, _resume=False)
    nn.init.zeros_(model.weight)
    hook = EMAHook(momentum=0.25)
    hook.before_run(runner)
    for value in (0.0, 8.0):
        nn.init.constant_(model.weight, value)
        hook.after_train_iter(runner, 0)
    checkpoint = dict(state_dict=model.state_dict())
    hook.before_save_checkpoint(runner, checkpoint)
    source = trained(tmp_path / "iter_2.pth", **checkpoint)
    published = publish(source, tmp_path / "model.pth")
    assert published.averaged
    assert "ema_state_dict" in published.left_out
    assert load_checkpoint(published.path)["state_dict"]["weight"].item() == 2.0
    assert model.weight.item() == 8.0


def test_wrapped_models_are_published_under_their_own_names(tmp_path):
    torch.save(dict(state_dict={"module.weight": torch.zeros(1)}), tmp_path / "wrapped.pth")
    path = publish(tmp_path / "wrapped.pth", tmp_path / "model.pth").path
    assert load_checkpoint(path)["state_dict"].keys() == {"weight"}


def test_half_precision(tmp_path):
    weights = dict(weight=torch.randn(3, 4), count=torch.tensor(70000), mask=torch.tensor([True]))
    source = trained(tmp_path / "iter_7.pth", state_dict=weights)
    path = publish(source, tmp_path / "model.pth", half=True).path
    content = load_checkpoint(path)
    assert content["state_dict"]["weight"].dtype is torch.float16
    assert content["meta"]["iter"] == 7
    for name, value in weights.items():
        found = content["state_dict"][name].to(value.dtype)
        assert torch.allclose(found, value, rtol=2**-11, atol=0), name

    weights["weight"][0] = 7e4
    source = trained(source, state_dict=weights)
    with pytest.raises(ValueError, match=r"weights up to 65504 in .* got larger ones in weight;"):
        publish(source, tmp_path / "model.pth", half=True)


def test_refuses(tmp_path):
    source = trained(tmp_path / "iter_7.pth")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.pth"):
        publish(source, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"an existing folder to publish to, got .*no$"):
        publish(source, tmp_path / "no" / "model.pth")
    torch.save(dict(model={"weight": torch.zeros(1)}), source)
    with pytest.raises(ValueError, match=r"with weights in 'state_dict', got model"):
        publish(source, tmp_path / "model.pth")
    assert [name for name in os.listdir(tmp_path) if re.search("model", name)] == []


@pytest.mark.parametrize(
    "name", ["hcformer_r50_8xb2-lsj-50e_coco-panoptic", "hcformer_r18_shapes-panoptic"]
)
def test_published_config_equals_that_of_the_training(name, tmp_path):
    config = Config.fromfile(find_config(name))
    folder = "/home/someone/run"
    text = Config({**config.to_dict(), "work_dir": folder, "resume": True}).pretty_text
    source = trained(tmp_path / "iter_7.pth", meta=dict(cfg=text))
    path = publish(source, tmp_path / "model.pth").path
    published = Config.fromstring(load_checkpoint(path)["meta"]["cfg"], ".py").to_dict()
    expected = config.to_dict()
    assert expected.pop("load_from", None) is None
    assert not expected.pop("resume", False)
    assert published == expected


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.mkdir({trace!r})",
        "x = __import__('os').mkdir({trace!r})",
        "x = dict(**open({trace!r}, 'w'))",
        "no config",
        7,
    ],
)
def test_configs_are_not_run(text, tmp_path):
    trace = str(tmp_path / "trace")
    text = text.format(trace=trace) if isinstance(text, str) else text
    source = trained(tmp_path / "iter_7.pth", meta=dict(cfg=text))
    published = publish(source, tmp_path / "model.pth")
    assert "cfg" not in load_checkpoint(published.path)["meta"]
    assert "meta.cfg" in published.left_out
    assert not os.path.exists(trace)
