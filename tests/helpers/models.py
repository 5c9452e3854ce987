"""Small models and samples that the tests share."""

from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

SHAPES_CONFIG = "configs/shapes/hcformer_r18_shapes-panoptic.py"
SEMANTIC_CONFIG = "configs/shapes/hcformer_r18_shapes-semantic.py"
COCO_CONFIG = "configs/hcformer/hcformer_r50_8xb2-lsj-50e_coco-panoptic.py"


def resnet(scope: str = "mmdet", depth: int = 18, **options: Any) -> dict[str, Any]:
    """Config of a ResNet without frozen normalization, that returns all its stages."""
    return dict(
        type=f"{scope}.ResNet", depth=depth, out_indices=(0, 1, 2, 3), norm_eval=False, **options
    )


def backbone(wrapped: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    """An HCBackbone, around a ResNet-18 by default, on the default device."""
    torch.manual_seed(0)
    model = MODELS.build(
        dict(type="hcformer_mm.HCBackbone", backbone=wrapped or resnet(), **options)
    )
    # mmcv's deformable convolutions make their weights on the CPU.
    return model.to(torch.get_default_device())


def model_config(path: str = SHAPES_CONFIG, **overrides: Any) -> ConfigDict:
    """The model of a config, with overrides such as ``{"panoptic_head.num_queries": 5}``."""
    config = Config.fromfile(path)
    config.merge_from_dict({f"model.{key}": value for key, value in overrides.items()})
    config.model.backbone.backbone.init_cfg = None
    return config.model


def detector(path: str = SHAPES_CONFIG, **overrides: Any) -> nn.Module:
    """A whole detector with random weights from seed 0, on the default device."""
    torch.manual_seed(0)
    model = MODELS.build(model_config(path, **overrides))
    return model.to(torch.get_default_device())  # tells the data preprocessor


def data_sample(
    size: tuple[int, int],
    *,
    original: tuple[int, int] | None = None,
    padded: tuple[int, int] | None = None,
    things: int = 2,
    stuff_label: int | None = 6,
) -> DetDataSample:
    """A sample with ``things`` boxes side by side on one class of stuff (None: void)."""
    height, width = padded or size
    masks = torch.zeros(things, height, width, dtype=torch.uint8)
    for i in range(things):
        left = i * width // max(things, 1)
        masks[i, height // 4 : height // 2, left : left + width // 4] = 1
    sample = DetDataSample(
        metainfo=dict(
            img_shape=size,
            ori_shape=original or size,
            batch_input_shape=(height, width),
            pad_shape=(height, width),
        )
    )
    labels = torch.arange(things) % 6
    bitmaps = BitmapMasks(masks.cpu().numpy(), height, width)
    boxes = bitmaps.get_bboxes("hbox").tensor.to(labels.device)
    sample.gt_instances = InstanceData(labels=labels, masks=bitmaps, bboxes=boxes)
    semantic = torch.full((1, height, width), 255 if stuff_label is None else stuff_label)
    for i in range(things):
        semantic[0, masks[i].bool()] = i % 6
    sample.gt_sem_seg = PixelData(sem_seg=semantic)
    return sample


def segmentor(**overrides: Any) -> nn.Module:
    """A small HCFormer in mmseg's EncoderDecoder, with random weights from seed 0."""
    return detector(SEMANTIC_CONFIG, **overrides)


def seg_sample(label_map: torch.Tensor, **metainfo: Any) -> SegDataSample:
    """A sample of mmseg with ``label_map`` (H, W) as ground truth."""
    size = tuple(label_map.shape)
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size) | metainfo)
    sample.gt_sem_seg = PixelData(data=label_map[None])
    return sample
