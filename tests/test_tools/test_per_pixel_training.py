"""A per-pixel classifier on clusters from data to mIoU, through the command line."""

import json

import pytest

from hcformer_mm.checkpoints.io import load_checkpoint
from tests.test_tools.test_train_and_test import loader_options, metrics, tool

CONFIG = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"


@pytest.fixture(scope="module")
def small_shapes(tmp_path_factory):
    """Six training and two validation images, and the options that point a config at them."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    tool(
        "tools/dataset_converters/make_shapes.py",
        *("--out", root, "--num-train", 6, "--num-val", 2),
    )
    return loader_options(root)


def records(work_dir):
    """What the runs in a work directory logged: <time>/vis_data/scalars.json."""
    return [
        json.loads(line)
        for path in sorted(work_dir.glob("*/vis_data/scalars.json"))
        for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_shapes):
    """The checkpoint of two iterations."""
    work_dir = tmp_path_factory.mktemp("work_dirs")
    schedule = [
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "train_dataloader.batch_size=2",
    ]
    tool(
        *("tools/train.py", CONFIG, "--work-dir", work_dir, "--cfg-options"),
        *(*small_shapes, *schedule, "default_hooks.logger.interval=1"),
    )
    return work_dir / "iter_2.pth"


def test_training_logs_the_losses_and_validates(trained):
    training, validation = records(trained.parent)[:2], records(trained.parent)[-1]
    for record in training:
        names = {"decode.loss_ce", "decode.loss_scale", "aux.loss_ce"}
        assert names <= record.keys()
        assert record["loss"] == pytest.approx(sum(record[name] for name in names), rel=1e-4)
    assert training[0]["decode.loss_scale"] == pytest.approx(0.1 * 3 * 0.1)
    assert 0 <= validation["mIoU"] <= 100


def test_checkpoint_holds_clusters_and_classes(trained):
    checkpoint = load_checkpoint(trained)
    assert "backbone.clusterings.2.scale" in checkpoint["state_dict"]
    assert "backbone.backbone.layer4.0.conv1.weight" in checkpoint["state_dict"]
    assert len(checkpoint["meta"]["dataset_meta"]["classes"]) == 10


def test_checkpoint_is_tested_in_windows_and_on_probabilities(trained, small_shapes, tmp_path):
    windows = ["mode=slide", "crop_size=(128,128)", "stride=(96,96)"]
    tool(
        *("tools/test.py", CONFIG, trained, "--work-dir", tmp_path, "--cfg-options"),
        *(*small_shapes, *(f"model.test_cfg.{option}" for option in windows)),
        "model.decode_head.mask_space=probability",
    )
    assert 0 <= metrics(tmp_path)["mIoU"] <= 100
