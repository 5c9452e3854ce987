"""The command line from data to metrics, on a Shapes set of a few images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from hcformer_mm.checkpoints.io import load_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = "configs/shapes/hcformer_r18_shapes-panoptic.py"


def tool(*arguments, check=True):
    """Run a tool as a user does, from the root of the project."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    if check:
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result


def loader_options(root):
    """Options that point the dataloaders of a Shapes config at a folder."""
    return [
        f"{split}_dataloader.{option}"
        for split in ("train", "val", "test")
        for option in (f"dataset.data_root={root}/", "num_workers=0", "persistent_workers=False")
    ]


@pytest.fixture(scope="module")
def small_shapes(tmp_path_factory):
    """Six training and three validation images, and the options that point a config at them."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    tool(
        "tools/dataset_converters/make_shapes.py",
        *("--out", root, "--num-train", 6, "--num-val", 3),
    )
    evaluators = [
        f"{split}_evaluator.{option}"
        for split in ("val", "test")
        for option in (
            f"0.ann_file={root}/annotations/panoptic_val.json",
            f"0.seg_prefix={root}/annotations/panoptic_val/",
            f"1.ann_file={root}/annotations/instances_val.json",
        )
    ]
    return [*loader_options(root), *evaluators]


def train(work_dir, options, *arguments, iterations=2):
    schedule = [f"train_cfg.max_iters={iterations}", f"train_cfg.val_interval={iterations}"]
    return tool(
        "tools/train.py",
        *(CONFIG, "--work-dir", work_dir, *arguments),
        *("--cfg-options", *options, *schedule, "train_dataloader.batch_size=2"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, small_shapes):
    work_dir = tmp_path_factory.mktemp("work_dirs")
    train(work_dir, small_shapes)
    return work_dir


def metrics(work_dir):
    """What a test writes: <time>/<time>.json."""
    (log,) = (path for path in work_dir.glob("*/*.json") if path.stem == path.parent.name)
    return json.loads(log.read_text())


def test_training_leaves_a_checkpoint(trained):
    checkpoint = load_checkpoint(trained / "iter_2.pth")
    names = checkpoint["state_dict"]
    assert "backbone.backbone.layer2.0.conv1.conv_offset.weight" in names
    assert "backbone.clusterings.0.scale" in names
    assert checkpoint["meta"]["dataset_meta"]["classes"][:2] == ("disc", "box")


def test_test_reports_all_metrics_and_dumps_predictions(trained, small_shapes, tmp_path):
    dump = tmp_path / "predictions.pkl"
    tool(
        "tools/test.py",
        *(CONFIG, trained / "iter_2.pth", "--work-dir", tmp_path, "--out", dump),
        *("--show-dir", "images", "--cfg-options", *small_shapes),
    )
    scores = metrics(tmp_path)
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert 0 <= scores[f"coco_panoptic/{name}"] <= 100
    assert "coco/segm_mAP" in scores
    assert 0 <= scores["sem_seg/mIoU"] <= 100
    assert dump.stat().st_size > 0
    assert len(list(tmp_path.glob("*/images/**/*.jpg"))) == 3


def test_test_in_bfloat16_and_fast(trained, small_shapes, tmp_path):
    tool(
        "tools/test.py",
        *(CONFIG, trained / "iter_2.pth", "--work-dir", tmp_path, "--fast", "--dtype", "bfloat16"),
        *("--cfg-options", *small_shapes),
    )
    assert "coco_panoptic/PQ" in metrics(tmp_path)
    (used,) = tmp_path.glob("*/vis_data/config.py")
    hooks = Config.fromfile(used).custom_hooks
    assert [hook.type for hook in hooks] == [
        "hcformer_mm.ClassCheckHook",
        "hcformer_mm.FastInferenceHook",
    ]
    assert (hooks[1].fast, hooks[1].dtype) == (True, "bfloat16")


def test_fast_training(small_shapes, tmp_path):
    options = ["norm_eval=True", "norm_cfg.type=BN", "norm_cfg.requires_grad=False"]
    options = [f"model.backbone.backbone.{option}" for option in options]
    train(tmp_path, [*small_shapes, *options], "--fast", iterations=1)
    names = load_checkpoint(tmp_path / "iter_1.pth")["state_dict"]
    assert "backbone.backbone.layer1.0.bn1.weight" in names
    (used,) = tmp_path.glob("*/vis_data/config.py")
    assert Config.fromfile(used).custom_hooks[-1].type == "hcformer_mm.FastTrainingHook"


def test_training_resumes(trained, small_shapes):
    result = train(trained, small_shapes, "--resume", iterations=3)
    assert "resumed" in result.stdout + result.stderr
    assert (trained / "iter_3.pth").is_file()


def test_auto_scale_lr_needs_a_base_batch_size(tmp_path):
    result = tool("tools/train.py", CONFIG, "--work-dir", tmp_path, "--auto-scale-lr", check=False)
    assert result.returncode != 0
    assert "expected auto_scale_lr.base_batch_size" in result.stderr


def test_dump_must_be_a_pickle():
    result = tool("tools/test.py", CONFIG, "x.pth", "--out", "x.json", check=False)
    assert result.returncode != 0
    assert "expected --out to end in .pkl" in result.stderr
