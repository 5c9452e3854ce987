"""From the data samples of both hosts to segmentations that can be drawn."""

from dataclasses import replace
from typing import Any

import numpy as np
from mmdet.structures import INSTANCE_OFFSET
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

from .arrays import Labels, Mask
from .panoptic import Classes, Panoptic

VOID_LABEL = 255
"""What semantic ground truth of both hosts has where nobody knows the class."""

SCORE_THR = 0.5
"""Least score of an instance that is drawn."""


def predicted_segments(
    sample: BaseDataElement, classes: Classes, *, score_thr: float = SCORE_THR
) -> Panoptic | None:
    """What a model predicted: segments, or else instances, or else classes.

    Args:
        sample: A ``DetDataSample`` or ``SegDataSample``.
        classes: The classes of the model.
        score_thr: Instances below this score are left out.

    Returns:
        None if there is no prediction of these kinds. Of instances that overlap the one with the
        higher score lies on top, and what no instance covers is void.
    """
    if "pred_panoptic_seg" in sample:
        return _by_label(_map(sample.pred_panoptic_seg), classes)
    if "pred_instances" in sample and "masks" in sample.pred_instances:
        instances = sample.pred_instances.numpy()
        kept = np.flatnonzero(instances.scores >= score_thr)
        kept = kept[np.argsort(instances.scores[kept], kind="stable")]
        background = Panoptic(np.zeros(instances.masks.shape[-2:], np.int64), {})
        return paint_instances(background, instances.masks[kept], instances.labels[kept])
    if "pred_sem_seg" in sample:
        return _by_label(_map(sample.pred_sem_seg), classes)
    return None


def true_segments(sample: BaseDataElement, classes: Classes) -> Panoptic | None:
    """The ground truth that came with an image: classes, instances, or both.

    Args:
        sample: A ``DetDataSample`` or ``SegDataSample``.
        classes: The classes of the model.

    Returns:
        None if there is no ground truth, or if it is of another size than the image: it was
        loaded before the image was resized.
    """
    size = tuple(sample.ori_shape[:2])
    truth = None
    if "gt_sem_seg" in sample:
        segments = _map(sample.gt_sem_seg)
        truth = replace(_by_label(segments, classes), ignore=segments == VOID_LABEL)
    if "gt_instances" in sample and "masks" in sample.gt_instances:
        masks = sample.gt_instances.masks.to_ndarray().astype(bool)
        under = Panoptic(np.zeros(masks.shape[1:], np.int64), {}) if truth is None else truth
        if under.segments.shape == masks.shape[1:]:
            truth = paint_instances(under, masks, sample.gt_instances.labels.cpu().numpy())
    return truth if truth is not None and truth.segments.shape == size else None


def paint_instances(under: Panoptic, masks: Mask, labels: NDArray[Any]) -> Panoptic:
    """Instances painted one over the other.

    Args:
        under: What lies under the instances; its ids are below 1000.
        masks: ``(N, H, W)``; the later ones lie on top.
        labels: ``(N,)`` index of the class of each.

    Returns:
        Segments whose ids are those of ``under`` and, for the instances, the host's: class + 1000 ·
        number from 1. Categories are those of the segments that can be seen. What is ignored is
        what ``under`` ignores and no instance covers, and pixels of several instances.
    """
    segments = under.segments.astype(np.int64)
    categories = dict(under.categories)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1):
        segments[mask] = int(label) + INSTANCE_OFFSET * number
        categories[int(label) + INSTANCE_OFFSET * number] = int(label)
    claims = masks.sum(axis=0, dtype=np.int64)
    ignore = claims > 1
    if under.ignore is not None:
        ignore |= under.ignore & (claims == 0)
    visible = set(np.unique(segments).tolist())
    return Panoptic(segments, {i: categories[i] for i in visible & categories.keys()}, ignore)


def _map(data: BaseDataElement) -> Labels:
    """The map ``(H, W)`` of a ``PixelData``, which mmdet and mmseg name differently."""
    return data.get("sem_seg", data.get("data"))[0].cpu().numpy().astype(np.int64)


def _by_label(segments: Labels, classes: Classes) -> Panoptic:
    """Segments whose ids are class + 1000 · instance; those of no class are void."""
    labels = {i: i % INSTANCE_OFFSET for i in np.unique(segments).tolist()}
    number = len(classes.names)
    return Panoptic(segments, {i: label for i, label in labels.items() if label < number})
