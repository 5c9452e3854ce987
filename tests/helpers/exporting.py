"""Small models with random weights that exercise every part, for exporting and compiling."""

from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from hcformer_mm.apis.inference import build_model
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from hcformer_mm.utils.config import find_config

TINY_CONFIG = "hcformer_r18_shapes-panoptic"
TINY = {
    "model.backbone.hierarchical_level": 1,
    "model.backbone.backbone.num_stages": 2,
    "model.backbone.backbone.strides": (1, 2),
    "model.backbone.backbone.dilations": (1, 1),
    "model.backbone.backbone.out_indices": (1,),
    "model.panoptic_head.in_channels": 128,
    "model.panoptic_head.num_queries": 5,
    "model.panoptic_head.transformer_decoder.num_layers": 1,
}
"""Overrides of :data:`TINY_CONFIG` for a model that is exported in seconds."""

SWIN_CONFIG = "hcformer_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic"
SMALL_SWIN = {
    "model.backbone.hierarchical_level": 1,
    "model.backbone.backbone.depths": (1, 2),
    "model.backbone.backbone.num_heads": (3, 6),
    "model.backbone.backbone.strides": (4, 2),
    "model.backbone.backbone.out_indices": (1,),
    "model.backbone.backbone.embed_dims": 24,
    "model.backbone.backbone.drop_path_rate": 0.0,
    "model.panoptic_head.in_channels": 48,
    "model.panoptic_head.num_queries": 5,
    "model.panoptic_head.transformer_decoder.num_layers": 1,
}
"""Overrides of :data:`SWIN_CONFIG` for a small model whose last block has shifted windows."""


def as_options(overrides: dict[str, Any]) -> list[str]:
    """Overrides as arguments of ``--cfg-options``."""
    return [f"{key}={value}".replace(" ", "") for key, value in overrides.items()]


def read_config(name: str, overrides: dict[str, Any] | None = None) -> Config:
    config = Config.fromfile(find_config(name))
    config.merge_from_dict(overrides or {})
    return config


def lively_model(config: Config, seed: int = 0) -> nn.Module:
    """A model with random weights, nonzero offsets, and BatchNorm statistics of its features."""
    model = build_model(config, seed=seed)
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, DeformableDownsampling):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
            nn.init.normal_(module.conv_offset.bias)
        if hasattr(module, "norm3"):
            # Random residual branches as strong as the shortcuts would amplify rounding errors.
            nn.init.constant_(module.norm3.weight, 0.2)
    for norm in norms:
        norm.momentum = None  # the mean over all images
        norm.train()
    with torch.no_grad():
        for _ in range(2):
            model.extract_feat(torch.randn(2, 3, 96, 128))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def confident(model: nn.Module) -> None:
    """Make random class logits of a mask transformer differ, so that there are segments."""
    head = getattr(model, "panoptic_head", None) or model.decode_head
    if hasattr(head, "cls_embed"):
        nn.init.normal_(head.cls_embed.weight, std=0.4)


def predict_bytes(model: nn.Module, images: Tensor, size: tuple[int, int]) -> list[Any]:
    """Data samples of the whole model for RGB bytes ``(B, H, W, 3)``, resized to ``size``."""
    kind = DetDataSample if isinstance(model, BaseDetector) else SegDataSample
    meta = dict(img_shape=tuple(images.shape[1:3]), ori_shape=size, scale_factor=(1.0, 1.0))
    samples = [kind(metainfo=meta) for _ in images]
    inputs = [image.permute(2, 0, 1).flip(0) for image in images]
    batch = model.data_preprocessor(dict(inputs=inputs, data_samples=samples))
    with torch.no_grad():
        return model(**batch, mode="predict")


def lively_checkpoint(config: Config, path: Path, seed: int = 0) -> Path:
    """Save the weights of :func:`lively_model`."""
    torch.save({"state_dict": lively_model(config, seed).state_dict()}, path)
    return path
