"""Predictions for tests: untrained models that predict something, and made-up samples."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from numpy.typing import NDArray
from torch import nn

from hcformer_mm.apis.inference import build_model
from hcformer_mm.datasets.shapes_generator import render_scene
from hcformer_mm.structures.panoptic import Classes
from tests.helpers.models import SHAPES_CONFIG

CLASSES = Classes(
    ["cup", "dog", "field", "sky"], frozenset(["cup", "dog"]), [(255, 0, 0)] * 3 + [(0, 0, 255)]
)
"""Classes of :func:`random_sample`."""


def outspoken_config(path: str = SHAPES_CONFIG) -> Config:
    """A config whose model keeps every segment, whatever its score, and scores it."""
    config = Config.fromfile(path)
    if "object_mask_thr" in config.model.get("test_cfg", {}):
        config.model.test_cfg.update(object_mask_thr=0.0, iou_thr=0.0, segments_on=True)
    return config


@torch.no_grad()
def diversify(model: nn.Module) -> None:
    """Make the queries of a random HCFormer differ in class and mask."""
    head = getattr(model, "panoptic_head", None) or model.decode_head
    if not hasattr(head, "mask_embed"):
        return  # a per-pixel classifier
    for parameter in head.transformer_decoder.parameters():
        if parameter.dim() > 1:
            parameter *= 0.01  # the queries are not mixed
    for weight in (head.mask_embed[-1].weight, head.mask_proj.weight):
        weight -= weight.mean(dim=1, keepdim=True)
    head.mask_embed[-1].bias.zero_()
    head.mask_embed[-1].weight *= 3000
    head.cls_embed.weight *= 20
    head.cls_embed.bias[-1] = -20  # "no object"


def write_model(folder: Path, path: str = SHAPES_CONFIG) -> tuple[Path, Path]:
    """Paths of a config and a checkpoint, written as the runner writes them."""
    config = outspoken_config(path)
    config.dump(folder / "config.py")
    model = build_model(config)
    diversify(model)
    meta = dict(dataset_meta=model.dataset_meta)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / "weights.pth")
    return folder / "config.py", folder / "weights.pth"


def scene(seed: int, size: tuple[int, int] = (96, 128)) -> NDArray[np.uint8]:
    """An image with regions, ``(H, W, 3)`` uint8, BGR, of about this size."""
    return np.ascontiguousarray(render_scene((seed,), size=size).image[..., ::-1])


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]]) -> Path:
    """Write frames, ``(H, W, 3)`` uint8, BGR, as a video in Motion JPEG."""
    first, *others = frames
    codec = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), codec, 5, first.shape[1::-1])
    for frame in (first, *others):
        writer.write(frame)
    writer.release()
    return path


def random_sample(height, width, seed=0):
    """A data sample of all kinds: cups and dogs on field and sky, and void."""
    generator = torch.Generator().manual_seed(seed)
    #   1000 and 2001 are the first objects; 4 is void; 2 and 3 stuff
    values = torch.tensor([1000, 2001, 3001, 2, 3, 4], dtype=torch.int32)
    coarse = torch.randint(6, (-(-height // 4), -(-width // 4)), generator=generator)
    picked = coarse.repeat_interleave(4, 0).repeat_interleave(4, 1)[:height, :width]
    masks = torch.rand(3, height, width, generator=generator) > 0.5
    masks[:, 0, 0] = True  # none is empty
    sample = DetDataSample()
    sample.pred_panoptic_seg = PixelData(sem_seg=values[picked][None])
    sample.pred_instances = InstanceData(
        masks=masks,
        scores=torch.tensor([0.25, 0.75, 0.5]),
        labels=torch.tensor([1, 0, 1]),
        bboxes=torch.zeros(3, 4),
    )
    sample.pred_sem_seg = PixelData(sem_seg=picked.clamp(max=3)[None])
    return sample
