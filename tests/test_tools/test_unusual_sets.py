"""Sets of things or stuff alone, without segments or of crowds: trained, evaluated, scored."""

import json

import pytest
from mmengine.config import Config

from tests.helpers.models import SHAPES_CONFIG
from tests.helpers.panoptic_sets import SETS, THING, drawing, metainfo, write_panoptic_set
from tests.helpers.tools import ROOT, run_tool


def write_config(root, name):
    """Write a set of two images a split, and a config that trains on it for two iterations."""
    categories, segments, crowds = SETS[name]
    images = {f"{i}.jpg": drawing(*segments, shift=8 * i) for i in range(2)}
    for split in ("train", "val"):
        write_panoptic_set(root, split, images, categories, crowds)
    config = Config.fromfile(ROOT / SHAPES_CONFIG)
    meta = metainfo(categories)
    classes = dict(
        num_things_classes=len(meta["thing_classes"]), num_stuff_classes=len(meta["stuff_classes"])
    )
    config.model.panoptic_head.update(classes)
    config.model.panoptic_fusion_head.update(classes)
    for split, part in (("train", "train"), ("val", "val"), ("test", "val")):
        loader = config[f"{split}_dataloader"]
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        loader.dataset.update(
            type="mmdet.CocoPanopticDataset",
            metainfo=meta,
            data_root=f"{root}/",
            ann_file=f"annotations/panoptic_{part}.json",
            data_prefix=dict(img=f"{part}/", seg=f"annotations/panoptic_{part}/"),
        )
        for step in loader.dataset.pipeline:
            if "scale" in step:
                step.scale = (64, 48)
    annotations = root / "annotations/panoptic_val"
    panoptic = dict(ann_file=f"{annotations}.json", seg_prefix=f"{annotations}/")
    config.val_evaluator = config.test_evaluator = [
        dict(type="mmdet.CocoPanopticMetric", **panoptic),  # build_runner replaces it
        dict(type="mmdet.SemSegMetric", iou_metrics=["mIoU"], prefix="sem_seg"),
    ]
    config.train_cfg.update(max_iters=2, val_interval=1)
    config.default_hooks.checkpoint.update(
        interval=2, save_best="coco_panoptic/PQ_th", rule="greater"
    )
    config.dump(root / "config.py")
    return root / "config.py"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "stuff only")) for name in SETS],
)
def test_training_evaluation_and_scores(name, tmp_path):
    config = write_config(tmp_path / "set", name)
    work_dir = tmp_path / "work"
    run_tool("tools/train.py", config, "--work-dir", work_dir)
    _, segments, crowds = SETS[name]
    out = tmp_path / "scores.json"
    weights = work_dir / "iter_2.pth"
    arguments = (config, weights, "--work-dir", tmp_path / "scored", "--slic", "--out", out)
    run_tool("tools/analysis_tools/evaluate_clusters.py", *arguments)
    metrics = json.loads(out.read_text())["metrics"]
    things, stuff = (THING in segments and not crowds), bool({*segments} - {THING})
    for kind, occurs in (("PQ_th", things), ("PQ_st", stuff), ("PQ", things or stuff)):
        assert (metrics[f"coco_panoptic/{kind}"] is not None) == occurs
        if occurs:
            figure = metrics[f"clusters/prediction/{kind}"]
            assert figure == pytest.approx(metrics[f"coco_panoptic/{kind}"])
    assert (metrics["clusters/level_1/ASA"] is not None) == (things or stuff)
    assert metrics["clusters/level_1/clusters"] > 0
    # The best checkpoint is one with a figure.
    assert any(work_dir.glob("best_*.pth")) == things
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    logged = [json.loads(line) for line in scalars.read_text().splitlines()]
    logged = [line["coco_panoptic/PQ_th"] for line in logged if "coco_panoptic/PQ_th" in line]
    assert len(logged) == 2 and all((value is None) != things for value in logged)
