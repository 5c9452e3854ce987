"""The COCO configs on two real images with panoptic ground truth; slow, since it takes minutes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as coco_mask

from tests.helpers.models import COCO_CONFIG

INSTANCE_CONFIG = "configs/hcformer/hcformer_r50_8xb2-lsj-50e_coco-instance.py"

ROOT = Path(__file__).parents[1]
SAMPLE = Path(os.environ.get("HCFORMER_MM_COCO_SAMPLE", ROOT / "../shared/data/coco_sample"))
ANNOTATIONS = "annotations/panoptic_val2017"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SAMPLE / f"{ANNOTATIONS}.json").is_file(),
        reason="needs two COCO images with panoptic ground truth: name their folder in "
        "HCFORMER_MM_COCO_SAMPLE",
    ),
]


def read(path, work_dir, ann_file, data_prefix):
    """A config that reads the sample for training and for validation, on the CPU."""
    config = Config.fromfile(ROOT / path)
    init_default_scope(config.default_scope)
    config.work_dir = str(work_dir)
    config.model.backbone.backbone.init_cfg = None
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(SAMPLE), ann_file=ann_file, data_prefix=data_prefix)
    # Mixed precision needs a GPU.
    config.optim_wrapper.type = "OptimWrapper"
    config.randomness = dict(seed=0)
    return config


@pytest.fixture
def config(tmp_path):
    """The panoptic config on the sample."""
    prefix = dict(img="val2017/", seg=ANNOTATIONS)
    config = read(COCO_CONFIG, tmp_path, f"{ANNOTATIONS}.json", prefix)
    panoptic = dict(
        type="hcformer_mm.CocoPanopticMetric",
        ann_file=str(SAMPLE / f"{ANNOTATIONS}.json"),
        seg_prefix=str(SAMPLE / ANNOTATIONS),
    )
    config.val_evaluator = config.test_evaluator = [panoptic]
    return config


@pytest.fixture
def instances(tmp_path):
    """The things of the sample as a file of COCO instances."""
    panoptic = json.loads((SAMPLE / f"{ANNOTATIONS}.json").read_text())
    things = [category for category in panoptic["categories"] if category["isthing"]]
    wanted = {category["id"] for category in things}
    annotations = []
    for entry in panoptic["annotations"]:
        with Image.open(SAMPLE / ANNOTATIONS / entry["file_name"]) as image:
            ids = rgb2id(np.asarray(image.convert("RGB")))
        for segment in entry["segments_info"]:
            if segment["category_id"] in wanted:
                mask = coco_mask.encode(np.asfortranarray(ids == segment["id"]).astype(np.uint8))
                mask["counts"] = mask["counts"].decode()
                # Ids of segments are unique in their image alone.
                own = dict(id=len(annotations) + 1, image_id=entry["image_id"], segmentation=mask)
                annotations.append(segment | own)
    file = tmp_path / "instances.json"
    file.write_text(
        json.dumps(dict(images=panoptic["images"], annotations=annotations, categories=things))
    )
    return file


@pytest.fixture
def instance_config(tmp_path, instances):
    """The instance config on the sample."""
    config = read(INSTANCE_CONFIG, tmp_path, str(instances), dict(img="val2017/"))
    for evaluators in (config.val_evaluator, config.test_evaluator):
        for evaluator in evaluators:
            evaluator.ann_file = str(instances)
    return config


def step(loader, kind):
    """The step of a pipeline whose type ends in ``kind``."""
    return next(s for s in loader.dataset.pipeline if s["type"].endswith(kind))


def test_two_images_are_memorized(config):
    """18 and 32 segments, from scratch, at 512 pixels: PQ of at least 60.

    Segments smaller than a cell of 32 x 32 pixels limit it: several of them share a cell of the
    coarsest map, and only the assignments can separate their masks.
    """
    iterations = 400
    side = 512
    # The default sampler would end an epoch, and the runner then pauses, after every batch.
    config.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    config.train_dataloader.batch_sampler = None
    config.model.train_cfg.num_points = 4096
    backbone = config.model.backbone.backbone
    backbone.update(depth=18, norm_cfg=dict(type="BN", requires_grad=True), norm_eval=False)
    config.model.panoptic_head.in_channels = 512
    step(config.train_dataloader, "Pad").size = (side, side)
    step(config.train_dataloader, "RandomResize").update(scale=(side, side), ratio_range=(1, 1))
    step(config.train_dataloader, "RandomCrop").crop_size = (side, side)
    step(config.train_dataloader, "RandomFlip").prob = 0.0
    for split in ("val", "test"):
        step(config[f"{split}_dataloader"], "Resize").scale = (side, side)
    # From scratch, the backbone learns at the full rate.
    config.optim_wrapper = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
        paramwise_cfg=dict(norm_decay_mult=0.0, dcn_offset_lr_mult=0.1),
        clip_grad=dict(max_norm=1.0),
    )
    config.param_scheduler = [
        dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
        dict(type="CosineAnnealingLR", by_epoch=False, T_max=iterations, eta_min=1e-6),
    ]
    config.train_cfg = dict(
        type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations
    )
    config.default_hooks.logger.interval = 10
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.val_loop.run()["coco_panoptic/PQ"] >= 60


def one_step_at(side, config):
    """A training step of initialized weights, and the metrics after it."""
    step(config.train_dataloader, "RandomResize").update(scale=(side, side), ratio_range=(1, 1))
    step(config.train_dataloader, "RandomCrop").crop_size = (side, side)
    step(config.train_dataloader, "Pad").size = (side, side)
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
    config.param_scheduler = None
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    changed = [n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])]
    trainable = [n for n, p in runner.model.named_parameters() if p.requires_grad]
    assert set(changed) <= set(trainable)
    assert len(changed) > 0.9 * len(trainable)
    return runner.test()


def test_r50_trains_a_step_and_predicts_at_800_pixels(config):
    assert "coco_panoptic/PQ" in one_step_at(800, config)


def test_r50_trains_a_step_on_instances(instance_config):
    for split in ("val", "test"):
        step(instance_config[f"{split}_dataloader"], "Resize").scale = (512, 512)
    metrics = one_step_at(512, instance_config)
    assert {"coco/segm_mAP", "coco/segm_mAP_s", "coco/boundary_mAP"} <= set(metrics)
