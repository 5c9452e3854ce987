"""The paper's Appendix D, read back from the optimizers, schedules and pipelines that are built."""

import numpy as np
import pytest
import torch
from mmcv.transforms import Pad
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.test_configs import (
    HCFORMER,
    R50,
    R50_ADE,
    R50_CITYSCAPES,
    R50_PLUS,
    SWIN_L,
    SWIN_S,
    build,
    read,
)

SWIN_L_COCO = f"{HCFORMER}_{SWIN_L}-lsj-100e_coco-panoptic.py"
SWIN_L_INSTANCE = f"{HCFORMER}-plus_{SWIN_L}-lsj-200e_coco-instance.py"
R50_INSTANCE = f"{HCFORMER}_r50_8xb2-lsj-50e_coco-instance.py"
SWIN_S_COCO = f"{HCFORMER}_{SWIN_S}-lsj-50e_coco-panoptic.py"
SWIN_S_PLUS_ADE = f"{HCFORMER}-plus_{SWIN_S}-320k_ade20k-512x512.py"
SWIN_L_ADE = f"{HCFORMER}_{SWIN_L}-160k_ade20k-640x640.py"
STANDARD = f"{HCFORMER}-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic.py"

MULTISTEP = {
    "50e": (368750, [327778, 355092]),
    "100e": (737500, [655556, 710184]),
    "200e": (1475000, [1311112, 1420368]),
}
SEMANTIC = {  # shorter side in the test, crop
    R50_ADE: (512, (512, 512)),
    SWIN_L_ADE: (640, (640, 640)),
    R50_CITYSCAPES: (1024, (512, 1024)),
}


def optimizer(config, model):
    """Build the optimizer without mixed precision, which needs a GPU."""
    assert config.optim_wrapper.type == "AmpOptimWrapper"
    config.optim_wrapper.type = "OptimWrapper"
    return build_optim_wrapper(model, config.optim_wrapper)


@pytest.mark.parametrize(
    "path",
    [R50, R50_INSTANCE, R50_ADE, R50_CITYSCAPES, SWIN_S_COCO, R50_PLUS, SWIN_S_PLUS_ADE, STANDARD],
)
def test_optimizer(path):
    """AdamW; a tenth of the rate before the head, no decay on norms and embeddings, clipping."""
    config = read(path)
    model = build(config)
    wrapper = optimizer(config, model)
    assert isinstance(wrapper.optimizer, torch.optim.AdamW)
    assert wrapper.optimizer.defaults["betas"] == (0.9, 0.999)
    assert wrapper.clip_grad_kwargs == dict(max_norm=0.01, norm_type=2)
    assert config.auto_scale_lr.base_batch_size == 8 * config.train_dataloader.batch_size == 16

    groups = wrapper.optimizer.param_groups
    settings = {id(g["params"][0]): (g["lr"], g["weight_decay"]) for g in groups}
    norms = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, nn.Embedding)
    undecayed = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters()}
    tables = ("relative_position_bias_table", "absolute_pos_embed")
    undecayed |= {id(p) for name, p in model.named_parameters() if name.endswith(tables)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == len(settings) > 200
    for name, parameter in trained:
        lr, decay = settings[id(parameter)]
        assert lr == pytest.approx(1e-5 if name.startswith(("backbone.", "neck.")) else 1e-4), name
        assert decay == pytest.approx(0.0 if id(parameter) in undecayed else 0.05), name


def test_no_norm_decays_after_one_option():
    """Trained BatchNorm, and a deeper encoder."""
    options = {
        "model.backbone.backbone.norm_cfg.requires_grad": True,
        "model.neck.encoder.num_layers": 7,
    }
    config = read(R50_PLUS, options)
    model = build(config)
    wrapper = optimizer(config, model)
    groups = {id(p): group for group in wrapper.optimizer.param_groups for p in group["params"]}
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm | _BatchNorm)]
    decays = {groups[id(p)]["weight_decay"] for norm in norms for p in norm.parameters()}
    assert decays == {0.0}


@pytest.mark.parametrize(
    ("path", "queries"),
    [
        *((path, 100) for path in (R50, R50_INSTANCE, R50_ADE, R50_CITYSCAPES, SWIN_S_PLUS_ADE)),
        *((path, 200) for path in (SWIN_L_COCO, SWIN_L_INSTANCE)),
        (SWIN_L_ADE, 100),
    ],
)
def test_losses_and_queries(path, queries):
    model = read(path).model
    head = model.get("decode_head") or dict(model.panoptic_head, train_cfg=model.train_cfg)
    head = MODELS.build(head)
    weights = [loss.loss_weight for loss in (head.loss_cls, head.loss_mask, head.loss_dice)]
    assert [*weights, head.loss_scale_weight] == [2.0, 5.0, 5.0, 0.1]
    assert head.class_weight == [1.0] * head.num_classes + [0.1]
    assert (head.num_queries, len(head.transformer_decoder.layers)) == (queries, 8)
    sampling = (head.num_points, head.oversample_ratio, head.importance_sample_ratio)
    assert sampling == (12544, 3, 0.75)
    assert (model.backbone.hierarchical_level, model.backbone.init_scale) == (3, 0.1)


@pytest.mark.parametrize("epochs", MULTISTEP)
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_schedule_on_coco(epochs, task):
    name = {"50e": f"_r50_8xb2-lsj-50e_coco-{task}", "100e": f"-plus_r50_8xb2-lsj-100e_coco-{task}"}
    path = name.get(epochs, f"-plus_{SWIN_L}-lsj-200e_coco-{task}")
    config = read(f"{HCFORMER}{path}.py")
    iterations, milestones = MULTISTEP[epochs]
    assert config.train_cfg.max_iters == config.param_scheduler.end == iterations
    assert config.param_scheduler.milestones == milestones
    assert config.param_scheduler.gamma == 0.1
    # The last validation is at the end.
    ((start, interval),) = config.train_cfg.dynamic_intervals
    assert iterations - config.train_cfg.val_interval < start - 1 <= iterations == interval


@pytest.mark.parametrize(
    ("path", "iterations"),
    [
        (R50_ADE, 160000),
        (SWIN_S_PLUS_ADE, 320000),
        (R50_CITYSCAPES, 90000),
        (f"{HCFORMER}-plus_r50_8xb2-180k_cityscapes-512x1024.py", 180000),
    ],
)
def test_schedule_of_semantic_segmentation(path, iterations):
    """Polynomial decay of power 0.9, to zero after the last iteration."""
    config = read(path)
    assert config.train_cfg.max_iters == iterations
    assert config.param_scheduler.end == iterations + 1
    config.param_scheduler.end = 11
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-4)
    scheduler = PARAM_SCHEDULERS.build(
        config.param_scheduler, default_args=dict(optimizer=optimizer)
    )
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1e-4 * (1 - i / 10) ** 0.9 for i in range(10)])


@pytest.mark.parametrize("path", [R50, R50_INSTANCE])
def test_pipeline_on_coco(path):
    """Large-scale jitter of 0.1 to 2.0 on crops of 1024x1024; 800 to 1333 pixels in the test."""
    config = read(path)
    steps = Compose(config.train_dataloader.dataset.pipeline).transforms
    steps = {type(step).__name__: step for step in steps}
    assert steps["RandomFlip"].prob == 0.5
    resize = steps["RandomResize"]
    assert resize.scale == (1024, 1024)
    assert resize.ratio_range == (0.1, 2.0)
    assert resize.resize_cfg["keep_ratio"]
    assert steps["RandomCrop"].crop_size == (1024, 1024)
    assert resize.resize_cfg["backend"] == "pillow"
    assert steps["Pad"].size == (1024, 1024)
    test = Compose(config.test_dataloader.dataset.pipeline).transforms
    (resize,) = (step for step in test if type(step).__name__ == "Resize")
    assert resize.scale == (1333, 800)
    assert resize.keep_ratio


@pytest.mark.parametrize("path", SEMANTIC)
def test_pipeline_of_semantic_segmentation(path):
    """The shorter side 0.5, 0.6, ... 2.0 times that of the test; crops; SSD's colors; flips."""
    side, crop = SEMANTIC[path]
    config = read(path)
    steps = Compose(config.train_dataloader.dataset.pipeline).transforms
    resize, cut = steps[2:4]
    chosen = set()
    for _ in range(200):
        result = resize(dict(img=np.zeros((30, 40, 3), np.uint8), seg_fields=[]))
        chosen.add(min(result["img_shape"]))
    assert chosen == {int(side * tenths / 10) for tenths in range(5, 21)}
    # The longer side becomes four times as long at most.
    result = resize(dict(img=np.zeros((100, 1000, 3), np.uint8), seg_fields=[]))
    assert result["img_shape"][1] == 4 * side
    assert (cut.crop_size, cut.cat_max_ratio) == (crop, 1.0)
    assert {"RandomFlip", "PhotoMetricDistortion"} < {type(step).__name__ for step in steps[4:]}
    test = Compose(config.test_dataloader.dataset.pipeline).transforms
    (resize,) = (step for step in test if type(step).__name__ == "Resize")
    assert (min(resize.scale), resize.keep_ratio) == (side, True)


@pytest.mark.parametrize("path", [R50, R50_INSTANCE, *SEMANTIC])
def test_small_images_are_padded_to_the_crop_and_ignored_there(path):
    """With the gray of the release, before normalization."""
    config = read(path)
    crop = SEMANTIC[path][1] if path in SEMANTIC else (1024, 1024)
    (pad,) = (
        step
        for step in Compose(config.train_dataloader.dataset.pipeline).transforms
        if isinstance(step, Pad)
    )
    padded = pad(
        dict(
            img=np.zeros((40, 60, 3), np.uint8),
            gt_masks=BitmapMasks(np.ones((1, 40, 60), np.uint8), 40, 60),
            gt_seg_map=np.zeros((40, 60), np.uint8),
            seg_fields=["gt_seg_map"],
        )
    )
    assert padded["img"].shape == (*crop, 3)
    outside = np.ones(crop, bool)
    outside[:40, :60] = False
    assert (padded["img"][outside] == 128).all()
    assert not padded["img"][~outside].any()
    assert ((padded["gt_seg_map"] == 255) == outside).all()
    if path not in SEMANTIC:
        assert (padded["gt_masks"].masks[0] == ~outside).all()
    # A crop is not padded again.
    images = [torch.from_numpy(padded["img"]).permute(2, 0, 1)]
    preprocessor = MODELS.build(config.model.data_preprocessor)
    batch = preprocessor(dict(inputs=images, data_samples=[BaseDataElement()]), training=False)
    assert batch["inputs"].shape == (1, 3, *crop)
