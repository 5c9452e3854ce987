"""The command lines of the converters in ``tools/model_converters``."""

import pytest
import torch
import torchvision

from hcformer_mm.checkpoints.io import load_checkpoint
from tests.helpers.exporting import as_options
from tests.helpers.released_checkpoints import random_state, released_keys
from tests.helpers.released_small import small
from tests.helpers.tools import ROOT, loader_options, run_tool

CONVERTER = "tools/model_converters/hcformer_d2_to_mm.py"
WARM_START = "tools/model_converters/warm_start.py"
R50 = "configs/hcformer/hcformer_r50_8xb2-lsj-50e_coco-panoptic.py"


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_converts_a_released_checkpoint_and_back(tmp_path):
    """An R50 at its real widths, for which the tool finds the config."""
    source, ours, again = (tmp_path / name for name in ("model_final.pth", "ours.pth", "again.pth"))
    state = random_state(released_keys()["hcformer_r50_coco_panoptic"])
    state["criterion.empty_weight"] = torch.tensor([1.0, 0.1])
    torch.save(dict(model=state, iteration=368749), source)
    output = run_tool(CONVERTER, source, ours)
    assert output.splitlines()[-9:] == [
        "model      HCFormer R50, level 3, deform downsampling, masked decoder of 8 layers, 100 "
        "queries of 256 channels, 133 classes",
        f"config     {R50}",
        "tensors    466 in the source: 465 converted, 1 dropped",
        "           518 in the model: 465 from the source, 53 filled",
        "dropped    criterion.empty_weight: class weights of the loss; the config has them",
        "filled     53 tensors such as backbone.backbone.bn1.num_batches_tracked: 0, as the "
        "released BatchNorm is frozen and counts nothing",
        "left out   iteration: no weights",
        f"written    {ours}",
        f"evaluate   python tools/test.py {R50} {ours}",
    ]
    output = run_tool(CONVERTER, "--reverse", ours, again)
    assert "tensors    518 in the source: 465 converted, 53 dropped" in output
    released = load_checkpoint(again)["model"]
    assert set(released) == set(state)
    for name, value in state.items():
        assert torch.equal(released[name], value), name


def test_checks_the_config(tmp_path):
    model = small(level=1, semantic=True)
    source, ours = tmp_path / "model_final.pth", tmp_path / "ours.safetensors"
    torch.save(dict(model=model.state), source)
    command = (CONVERTER, source, ours, "--config", model.name, "--cfg-options")
    output = run_tool(*command, *as_options(model.options))
    assert "model.backbone.hierarchical_level=1" in output
    assert "decode_head.cls_embed.weight" in load_checkpoint(ours)["state_dict"]
    ours.unlink()
    levels = {"model.backbone.hierarchical_level": 3}
    with pytest.raises(SystemExit, match=r"(?s)hcformer_d2_to_mm: .* level: expected 3, got 1"):
        run_tool(*command, *as_options(model.options | levels))
    assert not ours.exists()


def test_warm_start(tmp_path):
    source, target = tmp_path / "resnet50.pth", tmp_path / "warm.pth"
    torch.save(torchvision.models.resnet50().state_dict(), source)
    levels = "model.backbone.hierarchical_level=2"
    output = run_tool(WARM_START, source, target, "--config", R50, "--cfg-options", levels)
    lines = [line.split() for line in output.splitlines()]
    assert ["backbone.backbone", "277", "265", "0", "12"] in lines
    assert ["backbone.clusterings", "14", "0", "0", "14"] in lines
    assert "1 tensor of fc.weight not used" in output
    assert (
        f"python tools/train.py {R50} --cfg-options {levels} load_from={target} "
        "model.backbone.backbone.init_cfg=None" in output
    )
    assert len(load_checkpoint(target)["state_dict"]) == 265 + 53


@pytest.mark.slow
def test_training_starts_from_a_warm_start(tmp_path):
    """The printed command trains from the weights of another model."""
    root, donor, warm = (tmp_path / name for name in ("shapes", "donor.pth", "warm.pth"))
    annotations = root / "annotations"
    config = "configs/shapes/hcformer_r18_shapes-panoptic.py"
    maker = "tools/dataset_converters/make_shapes.py"
    run_tool(maker, "--out", root, "--num-train", 4, "--num-val", 2)
    torch.save(torchvision.models.resnet18().state_dict(), donor)
    run_tool(WARM_START, donor, warm, "--config", config)
    run_tool(
        *("tools/train.py", config, "--work-dir", tmp_path / "run"),
        *("--cfg-options", f"load_from={warm}", "model.backbone.backbone.init_cfg=None"),
        *("train_cfg.max_iters=1", "optim_wrapper.optimizer.lr=0"),
        *("train_cfg.val_interval=5", f"val_evaluator.0.ann_file={annotations}/panoptic_val.json"),
        f"val_evaluator.0.seg_prefix={annotations}/panoptic_val/",
        f"val_evaluator.1.ann_file={annotations}/instances_val.json",
        *("train_dataloader.batch_size=2", *loader_options(root)),
    )
    trained = load_checkpoint(tmp_path / "run" / "iter_1.pth")["state_dict"]
    name = "layer3.1.conv2.weight"
    assert torch.equal(trained[f"backbone.backbone.{name}"], load_checkpoint(donor)[name])
