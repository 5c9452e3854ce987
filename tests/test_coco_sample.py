"""The COCO config on two real pictures with panoptic ground truth; minutes, hence slow."""

import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from tests.models import COCO_CONFIG

ROOT = Path(__file__).parents[1]
SAMPLE = Path(os.environ.get("HCFORMER_MM_COCO_SAMPLE", ROOT / "../shared/data/coco_sample"))
ANNOTATIONS = "annotations/panoptic_val2017"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SAMPLE / f"{ANNOTATIONS}.json").is_file(),
        reason="needs two COCO pictures with panoptic ground truth: name their folder in "
        "HCFORMER_MM_COCO_SAMPLE",
    ),
]


@pytest.fixture
def config(tmp_path):
    """The COCO config, reading the sample for training and for validation, on the CPU."""
    config = Config.fromfile(ROOT / COCO_CONFIG)
    init_default_scope(config.default_scope)
    config.work_dir = str(tmp_path)
    config.model.backbone.backbone.init_cfg = None
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            data_root=str(SAMPLE),
            ann_file=f"{ANNOTATIONS}.json",
            data_prefix=dict(img="val2017/", seg=ANNOTATIONS),
        )
    panoptic = dict(
        type="mmdet.CocoPanopticMetric",
        ann_file=str(SAMPLE / f"{ANNOTATIONS}.json"),
        seg_prefix=str(SAMPLE / ANNOTATIONS),
    )
    config.val_evaluator = config.test_evaluator = [panoptic]
    # Mixed precision of the host needs a GPU.
    config.optim_wrapper.type = "OptimWrapper"
    return config


def step(loader, kind):
    """The step of a pipeline whose type ends in ``kind``."""
    return next(s for s in loader.dataset.pipeline if s["type"].endswith(kind))


def test_two_pictures_are_learnt_by_heart(config):
    """18 and 32 segments, from scratch, at 512 pixels: PQ of at least 60.

    Segments smaller than a cell of 32 x 32 pixels keep it from more: several of them share a cell
    of the coarsest map, and only what the assignments tell apart can become two masks.
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
    config.model.data_preprocessor.batch_augments[0].size = (side, side)
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
    config.randomness = dict(seed=0)
    runner = Runner.from_cfg(config)
    runner.train()
    assert runner.val_loop.run()["coco_panoptic/PQ"] >= 60


def test_r50_trains_a_step_and_predicts_at_800_pixels(config):
    step(config.train_dataloader, "RandomResize").update(scale=(800, 800), ratio_range=(1, 1))
    step(config.train_dataloader, "RandomCrop").crop_size = (800, 800)
    config.model.data_preprocessor.batch_augments[0].size = (800, 800)
    config.train_cfg = dict(type="IterBasedTrainLoop", max_iters=1, val_interval=1)
    config.param_scheduler = None
    config.randomness = dict(seed=0)
    runner = Runner.from_cfg(config)
    runner.model.init_weights()
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    changed = [n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])]
    trainable = [n for n, p in runner.model.named_parameters() if p.requires_grad]
    assert set(changed) <= set(trainable)
    assert len(changed) > 0.9 * len(trainable)
    metrics = runner.test()
    assert "coco_panoptic/PQ" in metrics
