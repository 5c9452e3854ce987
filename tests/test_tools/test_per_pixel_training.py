"""tools/train.py and tools/test.py on a per-pixel classifier with clusters."""

import pytest

from hcformer_mm.checkpoints.io import load_checkpoint
from hcformer_mm.datasets.shapes_writer import write_shapes
from tests.helpers.tools import loader_options, read_metrics, read_scalars, run_tool

CONFIG = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Six training and two validation images, as options of the config."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, num_train=6, num_val=2, workers=1)
    return loader_options(root)


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory, options):
    """Holds the checkpoint and the log of two iterations."""
    work_dir = tmp_path_factory.mktemp("work_dirs")
    schedule = ["max_iters=2", "val_interval=2"]
    run_tool(
        *("tools/train.py", CONFIG, "--work-dir", work_dir, "--cfg-options", *options),
        *(f"train_cfg.{option}" for option in schedule),
        *("train_dataloader.batch_size=2", "default_hooks.logger.interval=1"),
    )
    return work_dir


def test_training_logs_the_losses_and_validates(work_dir):
    *training, validation = read_scalars(work_dir)
    for record in training[:2]:
        names = {"decode.loss_ce", "decode.loss_scale", "aux.loss_ce"}
        assert names <= record.keys()
        assert record["loss"] == pytest.approx(sum(record[name] for name in names), rel=1e-4)
    assert training[0]["decode.loss_scale"] == pytest.approx(0.1 * 3 * 0.1)
    assert 0 <= validation["mIoU"] <= 100


def test_checkpoint_holds_clusters_and_classes(work_dir):
    checkpoint = load_checkpoint(work_dir / "iter_2.pth")
    assert "backbone.clusterings.2.scale" in checkpoint["state_dict"]
    assert "backbone.backbone.layer4.0.conv1.weight" in checkpoint["state_dict"]
    assert len(checkpoint["meta"]["dataset_meta"]["classes"]) == 10


def test_checkpoint_is_tested_in_windows_and_on_probabilities(work_dir, options, tmp_path):
    windows = ["mode=slide", "crop_size=(128,128)", "stride=(96,96)"]
    run_tool(
        *("tools/test.py", CONFIG, work_dir / "iter_2.pth", "--work-dir", tmp_path),
        *("--cfg-options", *options, *(f"model.test_cfg.{option}" for option in windows)),
        "model.decode_head.mask_space=probability",
    )
    assert 0 <= read_metrics(tmp_path)["mIoU"] <= 100
