"""Panoptic, instance and semantic results of a batch, as part of an exported model.

The formulas are those of :mod:`~hcformer_mm.models.utils.post_processing`. There they work on one
image, in bands of rows; here they work on a batch as a whole, without Python that depends on
values, so that PyTorch can record them for images of any size.
"""

from typing import Any

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from torch import Tensor, nn
from torch.nn import functional as F

from ..models import HCFormerFusionHead
from ..models.utils.post_processing import (
    THRESHOLDS,
    best_pairs,
    class_probabilities,
    extent,
    needed_queries,
    panoptic_queries,
    semantic_candidates,
)

Size = tuple[int, int]


class GraphFusion(nn.Module):
    """The results of a fusion head for a batch of images of one size.

    Args:
        fusion_head: The fusion head, whose ``test_cfg`` enables and configures the results. Its
            thresholds become constants of an exported model.
    """

    iou_thr: Tensor

    def __init__(self, fusion_head: HCFormerFusionHead) -> None:
        super().__init__()
        self.test_cfg = fusion_head.test_cfg
        self.num_things = fusion_head.num_things_classes
        self.num_classes = fusion_head.num_classes
        # A tensor, since exporters write Python's numbers as float32.
        iou_thr = torch.tensor({**THRESHOLDS, **self.test_cfg}["iou_thr"], dtype=torch.float64)
        self.register_buffer("iou_thr", iou_thr, persistent=False)

    def choose(self, class_logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the queries of every image that a result needs.

        Args:
            class_logits: ``(B, Q, K + 1)``.

        Returns:
            Class probabilities ``(B, Q, K + 1)`` of all queries, and indices ``(B, N)`` of the
            chosen ones: those of the panoptic result first. N is the largest number that an image
            needs, at least one.
        """
        probabilities = class_probabilities(class_logits)
        kept = panoptic_queries(probabilities, self.test_cfg, self.num_classes)[0]
        needed = needed_queries(class_logits, self.test_cfg, self.num_classes)
        return probabilities, _true_first(needed, kept)

    def forward(
        self, probabilities: Tensor, queries: Tensor, mask_logits: Tensor
    ) -> dict[str, Tensor]:
        """Return the results that ``test_cfg`` enables.

        Args:
            probabilities: Class probabilities ``(B, Q, K + 1)``.
            queries: Indices ``(B, N)`` of :meth:`choose`.
            mask_logits: Mask logits ``(B, N, H, W)`` of these queries.

        Returns:
            ``panoptic`` ``(B, H, W)`` int32, class + 1000 · object number; K for void. Of the
            instances: ``boxes`` ``(B, P, 4)`` (left, top, right, bottom), ``scores`` ``(B, P)``,
            ``labels`` ``(B, P)``, -1 where there is no instance, ``mask_index`` ``(B, P)``, and
            ``masks`` ``(B, N, H, W)`` bool, where ``masks[b, mask_index[b, p]]`` is the mask of
            instance p. ``semantic`` ``(B, H, W)`` int32: the class of every pixel.
        """
        masks = mask_logits.sigmoid()
        chosen = probabilities.gather(1, _expand(queries, probabilities))
        results: dict[str, Tensor] = {}
        if self.test_cfg.get("panoptic_on", True):
            results["panoptic"] = self._panoptic(chosen, masks)
        if self.test_cfg.get("instance_on", False):
            results |= self._instances(probabilities, queries, mask_logits, masks)
        if self.test_cfg.get("semantic_on", False):
            results["semantic"] = _semantic(probabilities, chosen, masks)
        return results

    def _panoptic(self, probabilities: Tensor, masks: Tensor) -> Tensor:
        found = panoptic_queries(probabilities, self.test_cfg, self.num_classes)
        kept, scores, classes = found
        scores = scores.where(kept, -1)  # the queries that are kept come first and win
        best = (scores[..., None, None] * masks).argmax(1)  # (B, H, W)
        winners = best.flatten(1)
        won = torch.zeros_like(classes).scatter_add(1, winners, torch.ones_like(winners))
        areas = _area(masks >= 0.5)
        stays = kept & (won > 0) & (areas > 0) & (won.double() / areas >= self.iou_thr)
        things = stays & (classes < self.num_things)
        values = classes + things * things.long().cumsum(1) * INSTANCE_OFFSET
        segments = values.where(stays, self.num_classes).gather(1, winners).view_as(best)
        if self.test_cfg.get("filter_low_score", False):
            sure = masks.gather(1, best[:, None])[:, 0] >= 0.5
            segments = segments.where(sure, self.num_classes)
        return segments.to(torch.int32)

    def _instances(
        self, probabilities: Tensor, queries: Tensor, mask_logits: Tensor, masks: Tensor
    ) -> dict[str, Tensor]:
        pairs, classes, scores = best_pairs(probabilities, self.test_cfg, self.num_classes)
        index = (pairs[..., None] == queries[:, None]).long().argmax(2)
        positive = mask_logits > 0
        sums = (masks * positive).sum(3).sum(2)
        confidence = sums / (_area(positive).to(sums.dtype) + 1e-6)
        left, right = extent(mask_logits.amax(2) > 0)
        top, bottom = extent(mask_logits.amax(3) > 0)
        boxes = torch.stack([left, top, right, bottom], dim=-1).to(sums.dtype)
        return dict(
            boxes=boxes.gather(1, _expand(index, boxes)),
            scores=scores * confidence.gather(1, index),
            labels=classes.where(classes < self.num_things, -1),
            mask_index=index,
            masks=positive,
        )


def most_likely_class(scores: Tensor, size: Size, threshold: float | None) -> Tensor:
    """Class of every pixel, as mmseg's segmentors find it.

    Args:
        scores: Class scores ``(B, K, H, W)`` of the image without padding.
        size: Height and width of the result.
        threshold: Threshold of the probability of a single class; None for several classes.

    Returns:
        Classes ``(B, H', W')`` int32.
    """
    scores = resize(scores, size)
    classes = scores.argmax(1) if threshold is None else scores[:, 0].sigmoid() > threshold
    return classes.to(torch.int32)


def resize(maps: Tensor, size: Size) -> Tensor:
    """Resize maps ``(B, C, h, w)`` bilinearly to ``size``."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _semantic(probabilities: Tensor, chosen: Tensor, masks: Tensor) -> Tensor:
    """Class of every pixel by the probabilities of all and of the chosen queries."""
    (candidates,) = semantic_candidates(probabilities).any(0).nonzero(as_tuple=True)
    scores = torch.einsum("bqk,bqhw->bkhw", chosen[..., candidates], masks)
    return candidates[scores.argmax(1)].to(torch.int32)


def _true_first(needed: Tensor, first: Tensor) -> Tensor:
    """Indices of the true elements of ``needed`` ``(B, Q)``, before them those also in ``first``.

    Others fill the rows up to the largest number of true elements.
    """
    count: Any = needed.sum(1).amax(0).clamp(min=1).item()
    torch._check(count >= 1)
    torch._check(count <= needed.shape[1])
    # Distinct keys keep the order of the queries: not every runtime sorts stably.
    rank = (needed & first).long() + needed.long()
    keys = rank * needed.shape[1] - torch.arange(needed.shape[1], device=needed.device)
    return keys.topk(count, dim=1).indices


def _expand(index: Tensor, rows: Tensor) -> Tensor:
    """Index ``(B, N)`` for gathering from rows ``(B, Q, C)`` along dim 1."""
    # ``take_along_dim`` would ask for the number of rows, which a graph does not know.
    return index[..., None].expand(-1, -1, rows.shape[-1])


def _area(masks: Tensor) -> Tensor:
    """Pixels of masks ``(B, N, H, W)``; float64, whose sums are exact for any image."""
    return masks.float().sum(3).double().sum(2)
