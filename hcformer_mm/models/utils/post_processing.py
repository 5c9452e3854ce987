"""Panoptic, instance and semantic results of one image from class and mask logits.

Every result depends on the logits of single pixels and on sums over pixels, so it can be computed
from bands of rows: on CPUs a band stays in the cache, and resized masks that would take more than
:data:`RESIZED_NUMEL` never exist as a whole.

Class logits alone determine which queries the results need: see :func:`needed_queries`. Other masks
need not be decoded or resized.
"""

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures.mask import mask2bbox
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ...ops.bands import is_eager_cpu, row_bands

BAND_NUMEL = 2**18
"""Mask logits in one band on a CPU: 1 MiB of float32."""
RESIZED_NUMEL = 2**28
"""Mask logits that are resized at once: 1 GiB of float32. Larger maps are resized by bands."""


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class scores of every pixel: softmax(class)ᵀ · sigmoid(mask), summed over the queries.

    Args:
        class_logits: ``(..., Q, K + 1)``, the last class being "no object".
        mask_logits: ``(..., Q, H, W)``.

    Returns:
        Scores ``(..., K, H, W)``, not negative.
    """
    probabilities = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("...qk,...qhw->...khw", probabilities, mask_logits.sigmoid())


def needed_queries(class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int) -> Tensor:
    """Queries of an image that can appear in a result.

    Args:
        class_logits: ``(Q, K + 1)``, the last class being "no object".
        test_cfg: Options of :class:`~hcformer_mm.models.HCFormerFusionHead`.
        num_classes: Number of classes, :math:`K`.

    Returns:
        Bool ``(Q,)``.
    """
    needed = class_logits.new_zeros(len(class_logits), dtype=torch.bool)
    if test_cfg.get("semantic_on", False):
        return ~needed
    if test_cfg.get("panoptic_on", True):
        needed |= panoptic_queries(class_logits, test_cfg, num_classes)[0]
    if test_cfg.get("instance_on", False):
        needed[best_pairs(class_logits, test_cfg, num_classes)[0]] = True
    return needed


def panoptic_queries(
    class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that take part in a panoptic segmentation, with the score and class of every query.

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

    Pairs with a stuff class are dropped later but, as in mmdet, count toward ``max_per_image``.

    Returns:
        Queries, classes and scores of the pairs, each ``(N,)``.
    """
    scores = class_logits.softmax(dim=-1)[:, :-1].flatten()
    count = min(test_cfg.get("max_per_image", 100), len(scores))
    scores, pairs = scores.topk(count, sorted=False)
    return pairs // num_classes, pairs % num_classes, scores


class PanopticResult:
    """Panoptic segmentation of mmdet's ``MaskFormerFusionHead``, without its loop over queries.

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
        """Accumulate the mask logits ``(Q, rows, W)`` of some rows of the image."""
        if not len(self._queries):
            return
        # Skip the copy if only needed queries have been decoded.
        logits = logits if len(self._queries) == len(logits) else logits[self._queries]
        probabilities = logits.sigmoid()  # (N, rows, W)
        sure = probabilities >= 0.5
        self._areas += sure.flatten(1).sum(1)
        winners = _argmax(self._scores.view(-1, 1, 1) * probabilities)
        self._winners[rows] = winners
        if self._filter_low_score:
            self._unsure[rows] = ~sure.gather(0, winners[None])[0]

    def result(self) -> PixelData:
        """Return ``sem_seg`` ``(1, H, W)`` int32: class + 1000 · object number; K for void."""
        number = len(self._queries)
        won = torch.bincount(self._winners.flatten(), minlength=max(number, 1))[:number]
        # In float64, like mmdet, which divides Python integers.
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
    """Instances of mmdet's ``MaskFormerFusionHead``, for any number of queries.

    mmdet fails if there are fewer than ``max_per_image`` pairs of a query and a class. Arguments
    are those of :class:`PanopticResult`; ``test_cfg`` has ``max_per_image``.
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
        # A query may be in several pairs; its mask is computed once.
        self._queries, self._index = queries.unique(return_inverse=True)
        number = len(self._queries)
        self._masks = class_logits.new_zeros((number, *size), dtype=torch.bool)
        self._confidence = class_logits.new_zeros(number, dtype=torch.float64)
        self._areas = class_logits.new_zeros(number, dtype=torch.int64)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Accumulate the mask logits ``(Q, rows, W)`` of some rows of the image."""
        logits = logits[self._queries]
        masks = logits > 0
        self._masks[:, rows] = masks
        # A sum over pixels overflows in half precision.
        self._confidence += (logits.sigmoid() * masks).flatten(1).sum(1, dtype=torch.float32)
        self._areas += masks.flatten(1).sum(1)

    def result(self) -> InstanceData:
        """Return ``scores``, ``labels``, ``bboxes`` and ``masks`` of the instances."""
        confidence = (self._confidence / (self._areas + 1e-6)).to(self._scores.dtype)
        return InstanceData(
            scores=self._scores * confidence[self._index],
            labels=self._classes,
            bboxes=mask2bbox(self._masks)[self._index],
            masks=self._masks[self._index],
        )


class SemanticResult:
    """Most likely class of every pixel by :func:`semantic_scores`.

    Args:
        class_logits: ``(Q, K + 1)``.
        size: Height and width of the image.
    """

    def __init__(self, class_logits: Tensor, size: tuple[int, int]) -> None:
        self._class_logits = class_logits
        self._classes = class_logits.new_zeros(size, dtype=torch.int64)

    def add(self, rows: slice, logits: Tensor) -> None:
        """Accumulate the mask logits ``(Q, rows, W)`` of some rows of the image."""
        self._classes[rows] = _argmax(semantic_scores(self._class_logits, logits))

    def result(self) -> PixelData:
        """Return ``sem_seg`` ``(1, H, W)``."""
        return PixelData(sem_seg=self._classes[None])


def resized_bands(masks: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Resize masks bilinearly, a band of rows at a time.

    Args:
        masks: Mask logits ``(Q, h, w)``.
        size: Height and width ``(H, W)`` after resizing.

    Yields:
        Rows of the resized masks, top to bottom, and their logits ``(Q, rows, W)``. Off the CPU
        there is a single band, unless it would exceed :data:`RESIZED_NUMEL`.
    """
    height, width = size
    row_numel = masks.shape[0] * width
    if height * row_numel <= RESIZED_NUMEL and tuple(masks.shape[-2:]) != size:
        masks = _resize(masks, size)
    resized = tuple(masks.shape[-2:]) == size
    numel = BAND_NUMEL if is_eager_cpu(masks) else RESIZED_NUMEL
    for rows in row_bands(height, row_numel, numel if resized else max(numel, 16 * row_numel)):
        yield rows, masks[:, rows] if resized else _resize_rows(masks, size, rows)


def _argmax(values: Tensor) -> Tensor:
    """Index of the first maximum along dim 0; on CPUs 3 to 5 times faster than ``argmax``."""
    return values.max(dim=0).indices


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def _resize_rows(masks: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """:func:`_resize` for some rows alone: interpolate down the columns, then along the rows."""
    height = masks.shape[1]
    centers = torch.arange(rows.start, rows.stop, device=masks.device, dtype=torch.float64) + 0.5
    centers = (centers * height / size[0] - 0.5).clamp(0, height - 1)
    above = centers.long()
    below = (above + 1).clamp(max=height - 1)
    weight = (centers - above).to(masks.dtype)[None, :, None]
    mixed = masks[:, above].lerp(masks[:, below], weight)
    return _resize(mixed, (rows.stop - rows.start, size[1]))
