"""Segmentations in the data samples of mmdet and mmseg."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray
from panopticapi.evaluation import OFFSET
from pycocotools.mask import decode

from .arrays import Labels, Mask
from .panoptic import Classes, Panoptic

VOID_LABEL = 255
"""Void in the semantic ground truth of mmdet and mmseg: pixels of unknown class."""

WIDE_VOID_LABEL = 65535
"""Void where 255 is a class: in label maps of 16 bits."""

SCORE_THR = 0.5
"""Default minimum score of predicted instances."""


def void_label(num_classes: int) -> int:
    """Label of pixels of unknown class, in label maps of so many classes."""
    return VOID_LABEL if num_classes <= VOID_LABEL else WIDE_VOID_LABEL


def check_score_thr(value: float) -> float:
    """Return a minimum score.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"expected score_thr from 0 to 1, got {value}")
    return value


def predicted_segments(
    sample: BaseDataElement, classes: Classes, *, score_thr: float = SCORE_THR
) -> Panoptic | None:
    """Read the prediction of a data sample: panoptic, else instance, else semantic.

    Args:
        sample: A ``DetDataSample`` or ``SegDataSample``.
        classes: The classes of the model.
        score_thr: Instances below this score are left out.

    Returns:
        The predicted segments; None if the sample has no prediction. Where instances overlap, the
        one with the higher score is on top; pixels without an instance are void.

    Raises:
        ValueError: The prediction has a class that the model lacks, or ``score_thr`` is not from 0
            to 1.
    """
    check_score_thr(score_thr)
    if "pred_panoptic_seg" in sample:
        number = len(classes.names)
        void = {number, sample.pred_panoptic_seg.get("ignore_index", number)}
        labels = _label_map(sample.pred_panoptic_seg)
        found = _from_labels(labels, classes, INSTANCE_OFFSET, void)
        if "pred_segments" not in sample:
            return found
        ids, scores = sample.pred_segments.ids, sample.pred_segments.scores
        return replace(found, scores=dict(zip(ids.tolist(), scores.tolist(), strict=True)))
    if "pred_instances" in sample and "masks" in sample.pred_instances:
        instances = sample.pred_instances.numpy()
        kept = np.flatnonzero(instances.scores >= score_thr)
        kept = kept[np.argsort(instances.scores[kept], kind="stable")]
        masks = instances.masks
        if isinstance(masks, list):  # RLEs, which are decoded one by one
            size = tuple(sample.ori_shape[:2])
            chosen = (decode(masks[i]).view(bool) for i in kept)
        else:
            size, chosen = masks.shape[-2:], iter(masks[kept])
        background = Panoptic(np.zeros(size, np.int64), {})
        scores = instances.scores[kept].tolist()
        return paint_instances(background, chosen, instances.labels[kept], scores)
    if "pred_sem_seg" in sample:
        return _from_labels(_label_map(sample.pred_sem_seg), classes)
    return None


def true_segments(sample: BaseDataElement, classes: Classes) -> Panoptic | None:
    """Read the ground truth of a data sample: semantic regions, instances, or both combined.

    Args:
        sample: A ``DetDataSample`` or ``SegDataSample``.
        classes: The classes of the model.

    Returns:
        The true segments; None if there is no ground truth, or if it was loaded before resizing and
        so differs from the original image in size.

    Raises:
        ValueError: The ground truth has a class that the model lacks.
    """
    size = tuple(sample.ori_shape[:2])
    truth = None
    if "gt_sem_seg" in sample:
        labels = _label_map(sample.gt_sem_seg)
        ignore = labels == void_label(len(classes.names))
        truth = replace(_from_labels(labels, classes), ignore=ignore)
    if "gt_instances" in sample and "masks" in sample.gt_instances:
        masks = sample.gt_instances.masks.to_ndarray().astype(bool)
        under = Panoptic(np.zeros(masks.shape[1:], np.int64), {}) if truth is None else truth
        if under.segments.shape == masks.shape[1:]:
            truth = paint_instances(under, masks, sample.gt_instances.labels.cpu().numpy())
    return truth if truth is not None and truth.segments.shape == size else None


def paint_instances(
    under: Panoptic,
    masks: Iterable[Mask],
    labels: NDArray[Any],
    scores: Sequence[float] | None = None,
) -> Panoptic:
    """Paint instances over a segmentation, one after the other.

    Args:
        under: Segmentation whose ids are classes.
        masks: N masks ``(H, W)``; later ones cover earlier ones.
        labels: Class index of each instance, ``(N,)``.
        scores: Score of each instance, if it has one.

    Returns:
        The visible segments. Instance ids are mmdet's, class + 1000 · number, counted from 1, with
        a larger factor if ids of ``under`` or classes reach 1000. ``ignore`` covers pixels of
        several instances, and pixels that ``under`` ignores and no instance covers.
    """
    segments = under.segments.astype(np.int64)
    categories = dict(under.categories)
    # Beyond void of 16 bits, too, which would be the number of an object of class 535.
    offset = max(INSTANCE_OFFSET, 1 + max(map(int, (segments.max(), *labels))))
    claimed, ignore = np.zeros((2, *segments.shape), np.bool_)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True), start=1):
        segment = int(label) + offset * number
        categories[segment] = int(label)
        # Only its box, as many small instances of a large image are many passes over it.
        filled = (np.asarray(mask.any(axis)) for axis in (1, 0))
        box = tuple(slice(one.argmax(), len(one) - one[::-1].argmax()) for one in filled)
        mask = mask[box]
        segments[box][mask] = segment
        ignore[box] |= claimed[box] & mask
        claimed[box] |= mask
    if under.ignore is not None:
        ignore |= under.ignore & ~claimed
    visible = set(np.unique(segments).tolist()) & categories.keys()
    numbers = {i: i // offset - 1 for i in visible if i >= offset}
    return Panoptic(
        segments,
        {i: categories[i] for i in visible},
        ignore,
        {} if scores is None else {i: scores[number] for i, number in numbers.items()},
    )


def _label_map(data: BaseDataElement) -> Labels:
    """Label map ``(H, W)``: ``sem_seg`` in mmdet's ``PixelData``, ``data`` in mmseg's."""
    return data.get("sem_seg", data.get("data"))[0].cpu().numpy().astype(np.int32, copy=False)


def classes_of_ids(
    labels: Labels, num_classes: int, void: Collection[int], what: str, offset: int | None = None
) -> dict[int, int]:
    """Class of each id in a label map, without those of void.

    Args:
        labels: ``(H, W)``; ids are classes, or class + offset · instance.
        num_classes: Number of classes.
        void: Numbers of void, in place of a class.
        what: Name of the label map, for an error.
        offset: See ``labels``.

    Raises:
        ValueError: An id has neither a class nor one of the numbers of void.
    """
    found = {i: i % offset if offset else i for i in np.unique(labels).tolist()}
    classes = {i: label for i, label in found.items() if label not in void}
    wrong = [i for i, one in classes.items() if not 0 <= i < OFFSET or one >= num_classes]
    if wrong:
        raise ValueError(
            f"expected classes from 0 to {num_classes - 1}, or {' or '.join(map(str, void))} for "
            f"void, in {what}{f' modulo {offset}' * bool(offset)}, got {wrong[0]}"
        )
    return classes


def _from_labels(
    labels: Labels, classes: Classes, offset: int | None = None, void: Collection[int] | None = None
) -> Panoptic:
    """Segments of a label map; see :func:`classes_of_ids`."""
    number = len(classes.names)
    void = (void_label(number),) if void is None else void
    return Panoptic(labels, classes_of_ids(labels, number, void, "a label map", offset))
