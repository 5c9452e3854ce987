"""Results of one image from class and mask logits, taken in a few rows of pixels at a time.

Every result here is a function of a pixel's own logits and of sums over pixels, so it can be had
from bands of rows: what is computed of a band stays in the processor's cache, and masks that would
take more than :data:`RESIZED_AT_ONCE` at the size of the image are never held all at once.

A query that no result can need is known by its class logits alone: :func:`needed_queries`. Masks of
others need not be decoded, resized or handed over; the results are the same.
"""

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.structures import INSTANCE_OFFSET
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from .semantic_inference import semantic_scores

CACHED = 2**18
"""Mask logits of a band that is worked on: 1 MiB of float32."""
RESIZED_AT_ONCE = 2**28
"""Mask logits that are resized in one go: 1 GiB of float32. Beyond, a band is resized at a time."""


def needed_queries(class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int) -> Tensor:
    """Which queries of an image can appear in a result.

    Args:
        class_logits: ``(Q, K + 1)``, the last class being "no object".
        test_cfg: As of :class:`~hcformer_mm.models.HCFormerFusionHead`.
        num_classes: Number of classes, :math:`K`.

    Returns:
        Bool ``(Q,)``.
    """
    if test_cfg.get("semantic_on", False):
        return torch.ones(len(class_logits), dtype=torch.bool, device=class_logits.device)
    needed = torch.zeros(len(class_logits), dtype=torch.bool, device=class_logits.device)
    if test_cfg.get("panoptic_on", True):
        needed |= panoptic_queries(class_logits, test_cfg, num_classes)[0]
    if test_cfg.get("instance_on", False):
        needed[best_pairs(class_logits, test_cfg, num_classes)[0]] = True
    return needed


def panoptic_queries(
    class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that take part in a panoptic segmentation, and the score and class of every query.

    Returns:
        Bool ``(Q,)``, scores ``(Q,)`` and classes ``(Q,)``.
    """
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)
    kept = (classes != num_classes) & (scores > test_cfg.get("object_mask_thr", 0.8))
    return kept, scores, classes


def best_pairs(
    class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``max_per_image`` most probable pairs of a query and a class, stuff included.

    Pairs of stuff are no instances, but they take places in the ranking. A query that is here only
    with stuff is needed, too: without it, its place would go to another pair.

    Returns:
        Queries, classes and scores of the pairs, each ``(N,)``.
    """
    scores = class_logits.softmax(dim=-1)[:, :-1].flatten()
    wanted = min(test_cfg.get("max_per_image", 100), len(scores))
    scores, pairs = scores.topk(wanted, sorted=False)
    return pairs // num_classes, pairs % num_classes, scores


class PanopticResult:
    """Panoptic segmentation as of the host's ``MaskFormerFusionHead``, without a loop over queries.

    Args:
        class_logits: ``(Q, K + 1)``.
        size: Height and width of the image.
        test_cfg: ``object_mask_thr``, ``iou_thr`` and ``filter_low_score``.
        num_things: Number of thing classes.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        class_logits: Tensor,
        size: tuple[int, int],
        test_cfg: dict[str, Any],
        num_things: int,
        num_classes: int,
    ) -> None:
        kept, scores, classes = panoptic_queries(class_logits, test_cfg, num_classes)
        self._queries = kept.nonzero()[:, 0]
        self._scores, self._classes = scores[kept], classes[kept]
        self._num_things, self._num_classes = num_things, num_classes
        self._iou_thr = test_cfg.get("iou_thr", 0.8)
        self._filter_low_score = test_cfg.get("filter_low_score", False)
        self._winners = class_logits.new_zeros(size, dtype=torch.int32)
        self._unsure = class_logits.new_zeros(size, dtype=torch.bool)
        self._areas = class_logits.new_zeros(len(self._queries), dtype=torch.int64)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Take in the mask logits ``(Q, rows, W)`` of some rows of the image."""
        if not len(self._queries):
            return
        # Queries that are not needed have often been left out already.
        logits = logits if len(self._queries) == len(logits) else logits[self._queries]
        probabilities = logits.sigmoid()  # (N, rows, W)
        sure = probabilities >= 0.5
        self._areas += sure.flatten(1).sum(1)
        winners = _argmax(self._scores.view(-1, 1, 1) * probabilities)
        self._winners[rows] = winners
        if self._filter_low_score:
            self._unsure[rows] = ~sure.gather(0, winners[None])[0]

    def result(self) -> PixelData:
        """``sem_seg`` ``(1, H, W)`` int32: class + 1000 · number of object; K where nothing is."""
        number = len(self._queries)
        won = torch.bincount(self._winners.flatten(), minlength=max(number, 1))[:number]
        # In float64, as the host divides Python's integers.
        share = won.double() / self._areas.double()
        stays = (won > 0) & (self._areas > 0) & (share >= self._iou_thr)
        things = stays & (self._classes < self._num_things)
        values = torch.where(
            stays, self._classes + things * things.cumsum(0) * INSTANCE_OFFSET, self._num_classes
        )
        segments = torch.full_like(self._winners, self._num_classes)
        if number:
            segments = values.to(torch.int32)[self._winners]
            segments[self._unsure] = self._num_classes
        return PixelData(sem_seg=segments[None])


class InstanceResult:
    """Instances as of the host's ``MaskFormerFusionHead``.

    For any number of queries: the host asks for ``max_per_image`` pairs of a query and a class even
    where there are not as many.

    Args:
        class_logits: ``(Q, K + 1)``.
        size: Height and width of the image.
        test_cfg: ``max_per_image``.
        num_things: Number of thing classes.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        class_logits: Tensor,
        size: tuple[int, int],
        test_cfg: dict[str, Any],
        num_things: int,
        num_classes: int,
    ) -> None:
        queries, classes, scores = best_pairs(class_logits, test_cfg, num_classes)
        things = classes < num_things
        queries, self._classes, self._scores = queries[things], classes[things], scores[things]
        # A query may stand in several pairs; its mask is looked at once.
        self._queries, self._index = queries.unique(return_inverse=True)
        number = len(self._queries)
        self._masks = class_logits.new_zeros((number, *size), dtype=torch.bool)
        self._confidence = class_logits.new_zeros(number, dtype=torch.float64)
        self._areas = class_logits.new_zeros(number, dtype=torch.int64)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Take in the mask logits ``(Q, rows, W)`` of some rows of the image."""
        logits = logits[self._queries]
        masks = logits > 0
        self._masks[:, rows] = masks
        # In half precision a sum over pixels overflows.
        self._confidence += (logits.sigmoid() * masks).flatten(1).sum(1, dtype=torch.float32)
        self._areas += masks.flatten(1).sum(1)

    def result(self) -> InstanceData:
        """``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances."""
        confidence = (self._confidence / (self._areas + 1e-6)).to(self._scores.dtype)
        return InstanceData(
            scores=self._scores * confidence[self._index],
            labels=self._classes,
            bboxes=mask2bbox(self._masks)[self._index],
            masks=self._masks[self._index],
        )


class SemanticResult:
    """The class of every pixel by :func:`~hcformer_mm.models.utils.semantic_inference.semantic_scores`.

    Args:
        class_logits: ``(Q, K + 1)``.
        size: Height and width of the image.
    """

    def __init__(self, class_logits: Tensor, size: tuple[int, int]) -> None:
        self._class_logits = class_logits
        self._classes = class_logits.new_zeros(size, dtype=torch.int64)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Take in the mask logits ``(Q, rows, W)`` of some rows of the image."""
        self._classes[rows] = _argmax(semantic_scores(self._class_logits, logits))

    def result(self) -> PixelData:
        """``sem_seg``, the most likely class of every pixel, ``(1, H, W)``."""
        return PixelData(sem_seg=self._classes[None])


def bands(masks: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Masks at another size, some rows at a time.

    Args:
        masks: Mask logits ``(Q, h, w)``.
        size: Height and width ``(H, W)`` that they are resized to, bilinearly.

    Yields:
        Rows of the resized masks, from the first to the last, and their logits ``(Q, rows, W)``.
    """
    height, width = size
    at_once = masks.shape[0] * height * width <= RESIZED_AT_ONCE
    if at_once and tuple(masks.shape[-2:]) != (height, width):
        masks = _resize(masks, size)
    resized = tuple(masks.shape[-2:]) == (height, width)
    step = max(1, CACHED // max(1, masks.shape[0] * width))
    if not resized:
        step = max(step, 16)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        if resized:
            yield rows, masks[:, rows]
        else:
            yield rows, _resize_rows(masks, size, rows)


def _argmax(values: Tensor) -> Tensor:
    """Index of the first maximum along dim 0."""
    # PyTorch's argmax takes three to five times as long as its max, on CPUs.
    return values.max(dim=0).indices


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _resize_rows(masks: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """The same of some rows alone: interpolated down the columns here, along the rows there."""
    height = masks.shape[1]
    centers = torch.arange(rows.start, rows.stop, device=masks.device, dtype=torch.float64) + 0.5
    centers = (centers * height / size[0] - 0.5).clamp(0, height - 1)
    above = centers.long()
    below = (above + 1).clamp(max=height - 1)
    weight = (centers - above).to(masks.dtype)[None, :, None]
    mixed = masks[:, above].lerp(masks[:, below], weight)
    return _resize(mixed, (rows.stop - rows.start, size[1]))
