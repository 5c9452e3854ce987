"""The converters on the command line, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from hcformer_mm.checkpoints.io import load_checkpoint
from tests.helpers.released_checkpoints import random_state, released_keys
from tests.helpers.released_small import small

ROOT = Path(__file__).parents[2]
CONVERTER = "tools/model_converters/hcformer_d2_to_mm.py"
R50 = "configs/hcformer/hcformer_r50_8xb2-lsj-50e_coco-panoptic.py"


def tool(*arguments):
    """Run a tool as a user does, from the root of the project."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def as_options(options):
    """Overrides as they are written on a command line."""
    return [f"{key}={str(value).replace(' ', '')}" for key, value in options.items()]


def test_converts_a_released_checkpoint_and_back(tmp_path):
    """Of the R50 at its real widths; the config is found."""
    source, ours, again = (tmp_path / name for name in ("model_final.pth", "ours.pth", "again.pth"))
    state = random_state(released_keys()["hcformer_r50_coco_panoptic"])
    state["criterion.empty_weight"] = torch.tensor([1.0, 0.1])
    torch.save(dict(model=state, iteration=368749), source)
    result = tool(CONVERTER, source, ours)
    assert result.returncode == 0, result.stderr
    for line in (
        "model      HCFormer R50, level 3, deform downsampling, masked decoder of 8 layers, 100 "
        "queries of 256 channels, 133 classes",
        f"config     {R50}",
        "tensors    466 in the source: 465 converted, 1 dropped",
        "           518 in the model: 465 from the source, 53 filled",
        "dropped    criterion.empty_weight: class weights of the loss; the config has "
        "them",
        "filled     53 tensors such as backbone.backbone.bn1.num_batches_tracked: 0, as the "
        "released BatchNorm is frozen and counts nothing",
        "left out   iteration: no weights",
        f"written    {ours}",
        f"evaluate   python tools/test.py {R50} {ours}",
    ):
        assert line in result.stdout.splitlines()

    result = tool(CONVERTER, "--reverse", ours, again)
    assert result.returncode == 0, result.stderr
    assert "tensors    518 in the source: 465 converted, 53 dropped" in result.stdout
    released = load_checkpoint(again)["model"]
    assert set(released) == set(state)
    for name, value in state.items():
        assert torch.equal(released[name], value), name


def test_checks_the_config(tmp_path):
    model = small(level=1, semantic=True)
    source, ours = tmp_path / "model_final.pth", tmp_path / "ours.safetensors"
    torch.save(dict(model=model.state), source)
    overrides = as_options(model.options)
    result = tool(CONVERTER, source, ours, "--config", model.name, "--cfg-options", *overrides)
    assert result.returncode == 0, result.stderr
    assert "model.backbone.hierarchical_level=1" in result.stdout
    assert "decode_head.cls_embed.weight" in load_checkpoint(ours)["state_dict"]
    ours.unlink()
    level = "model.backbone.hierarchical_level=3"
    result = tool(
        CONVERTER, source, ours, "--config", model.name, "--cfg-options", *overrides, level
    )
    assert result.returncode == 1
    assert "level: expected 3, got 1" in result.stderr
    assert "Traceback" not in result.stderr
    assert not ours.exists()


def test_warm_start(tmp_path):
    source, target = tmp_path / "resnet50.pth", tmp_path / "warm.pth"
    torch.save(torchvision.models.resnet50().state_dict(), source)
    tool_name = "tools/model_converters/warm_start.py"
    levels = "model.backbone.hierarchical_level=2"
    result = tool(tool_name, source, target, "--config", R50, "--cfg-options", levels)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["backbone.backbone", "277", "265", "0", "12"] in lines
    assert ["backbone.clusterings", "14", "0", "0", "14"] in lines
    assert "1 tensor of fc.weight not used" in result.stdout
    assert (
        f"python tools/train.py {R50} --cfg-options {levels} load_from={target} "
        "model.backbone.backbone.init_cfg=None" in result.stdout
    )
    assert len(load_checkpoint(target)["state_dict"]) == 265 + 53


@pytest.mark.slow
def test_training_starts_from_a_warm_start(tmp_path):
    """What the tool prints is what one runs: an iteration from the weights of another model."""
    root, donor = tmp_path / "shapes", tmp_path / "donor.pth"
    config = "configs/shapes/hcformer_r18_shapes-panoptic.py"
    made = tool(
        "tools/dataset_converters/make_shapes.py",
        *("--out", root, "--num-train", 4, "--num-val", 2),
    )
    assert made.returncode == 0, made.stderr
    torch.save(torchvision.models.resnet18().state_dict(), donor)
    warm = tmp_path / "warm.pth"
    assert (
        tool("tools/model_converters/warm_start.py", donor, warm, "--config", config).returncode
        == 0
    )
    options = [
        f"{split}_dataloader.{option}"
        for split in ("train", "val")
        for option in (f"dataset.data_root={root}/", "num_workers=0", "persistent_workers=False")
    ]
    result = tool(
        "tools/train.py",
        *(config, "--work-dir", tmp_path / "run", "--cfg-options", f"load_from={warm}"),
        *("model.backbone.backbone.init_cfg=None", "train_cfg.max_iters=1"),
        *("optim_wrapper.optimizer.lr=0", "train_dataloader.batch_size=2", *options),
        "train_cfg.val_interval=5",
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    trained = load_checkpoint(tmp_path / "run" / "iter_1.pth")["state_dict"]
    start = load_checkpoint(donor)
    name = "layer3.1.conv2.weight"
    assert torch.equal(trained[f"backbone.backbone.{name}"], start[name])
