"""Panoptic, instance and semantic results of one image from class and mask logits.

Every result depends on the logits of single pixels and on sums over pixels, so it can be computed
from bands of rows: on CPUs a band stays in the cache, and resized masks that would take more than
:data:`RESIZED_NUMEL` never exist as a whole.

Class logits alone determine which queries the results need: see :func:`needed_queries`. Other masks
need not be decoded or resized. Probabilities and sums are float32 where logits are of half
precision; nothing is float64, which some devices lack.
"""

import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ...ops.bands import is_eager_cpu, row_bands
from ...ops.precision import autocast_off, full_precision

BAND_NUMEL = 2**18
"""Mask logits in one band on a CPU: 1 MiB of float32."""
RESIZED_NUMEL = 2**28
"""Mask logits that are resized at once: 1 GiB of float32. Larger maps are resized by bands."""
NEGLIGIBLE = 2**-24
"""Class probability, relative to the largest one, that is within the rounding of float32."""

THRESHOLDS: dict[str, Any] = dict(object_mask_thr=0.8, iou_thr=0.8, max_per_image=100)
"""What holds where ``test_cfg`` has no such option: mmdet's defaults."""


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Class scores of every pixel: softmax(class)ᵀ · sigmoid(mask), summed over the queries.

    Args:
        class_logits: ``(..., Q, K + 1)``, the last class being "no object".
        mask_logits: ``(..., Q, H, W)``.

    Returns:
        Scores ``(..., K, H, W)``, not negative and not in half precision.
    """
    with autocast_off(mask_logits.device.type):  # scores of close classes need float32
        probabilities = class_probabilities(class_logits)[..., :-1]
        masks = full_precision(mask_logits).sigmoid()
        return torch.einsum("...qk,...qhw->...khw", probabilities, masks)


def semantic_confidence(maps: Tensor, classes: Tensor, *, are_scores: bool) -> Tensor:
    """Probability that the class of a pixel is right, as the model sees it.

    Args:
        maps: Class logits ``(K, H, W)``, or scores of classes; with K = 1, as in mmseg, the
            probability of class 1.
        classes: The most likely class of every pixel, ``(1, H, W)``.
        are_scores: Whether ``maps`` are sums of probabilities, as :func:`semantic_scores` returns
            them. Then the probability of a class is its share of the scores of all classes.

    Returns:
        ``(1, H, W)``, from 0 to 1, not in half precision.
    """
    maps = full_precision(maps)
    if len(maps) == 1:
        return maps.where(classes > 0, 1 - maps)
    best = maps.amax(dim=0, keepdim=True)
    if are_scores:
        return best / maps.sum(dim=0, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return 1 / (maps - best).exp().sum(dim=0, keepdim=True)


def class_probabilities(class_logits: Tensor) -> Tensor:
    """Softmax of class logits ``(..., K + 1)``, never in half precision."""
    return full_precision(class_logits).softmax(dim=-1)


def config_of(data_sample: BaseDataElement, test_cfg: dict[str, Any]) -> dict[str, Any]:
    """``test_cfg`` of a head with the overrides in the metainfo of one image."""
    return {**test_cfg, **data_sample.get("test_cfg", {})}


def needed_queries(class_logits: Tensor, test_cfg: dict[str, Any], num_classes: int) -> Tensor:
    """Queries of an image that can appear in a result.

    Args:
        class_logits: ``(..., Q, K + 1)``, the last class being "no object".
        test_cfg: Options of :class:`~hcformer_mm.models.HCFormerFusionHead`.
        num_classes: Number of classes, :math:`K`.

    Returns:
        Bool ``(..., Q)``.
    """
    probabilities = class_probabilities(class_logits)
    needed = torch.zeros_like(probabilities[..., 0], dtype=torch.bool)
    if test_cfg.get("panoptic_on", True):
        needed |= panoptic_queries(probabilities, test_cfg, num_classes)[0]
    if test_cfg.get("candidates_on", False):
        needed |= panoptic_queries(probabilities, without_thresholds(test_cfg), num_classes)[0]
    if test_cfg.get("instance_on", False):
        needed.scatter_(-1, best_pairs(probabilities, test_cfg, num_classes)[0], True)
    if test_cfg.get("semantic_on", False):
        needed |= semantic_queries(probabilities)
    return needed


def without_thresholds(test_cfg: dict[str, Any]) -> dict[str, Any]:
    """Options of a panoptic segmentation of all queries, however low their scores are."""
    return {**test_cfg, "object_mask_thr": 0.0, "iou_thr": 0.0}


def panoptic_queries(
    probabilities: Tensor, test_cfg: dict[str, Any], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that take part in a panoptic segmentation, with the score and class of every query.

    Args:
        probabilities: Class probabilities ``(..., Q, K + 1)``.
        test_cfg: ``object_mask_thr``.
        num_classes: Number of classes.

    Returns:
        Bool ``(..., Q)``, scores ``(..., Q)`` and classes ``(..., Q)``.
    """
    scores, classes = probabilities.max(dim=-1)
    kept = (classes != num_classes) & (scores > {**THRESHOLDS, **test_cfg}["object_mask_thr"])
    return kept, scores, classes


def best_pairs(
    probabilities: Tensor, test_cfg: dict[str, Any], num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``max_per_image`` most probable pairs of a query and a class, stuff included.

    Pairs with a stuff class are dropped later but, as in mmdet, count toward ``max_per_image``.

    Args:
        probabilities: Class probabilities ``(..., Q, K + 1)``.
        test_cfg: ``max_per_image``.
        num_classes: Number of classes.

    Returns:
        Queries, classes and scores of the pairs, each ``(..., N)``.
    """
    scores = probabilities[..., :-1].flatten(-2)
    count = min({**THRESHOLDS, **test_cfg}["max_per_image"], scores.shape[-1])
    scores, pairs = scores.topk(count, sorted=False)
    return pairs // num_classes, pairs % num_classes, scores


def semantic_queries(probabilities: Tensor) -> Tensor:
    r"""Queries whose class probabilities are not all :data:`NEGLIGIBLE`.

    Let :math:`p` be the largest class probability of the image. Leaving out the other queries
    changes the class scores of a pixel by less than :math:`2^{-24} Q p`, so the most likely class
    differs only where the two best scores are closer than that. Rounding a sum of :math:`Q` terms
    of up to :math:`p` in float32 can change it as much.

    Args:
        probabilities: Class probabilities ``(..., Q, K + 1)``.

    Returns:
        Bool ``(..., Q)``.
    """
    best = probabilities[..., :-1].amax(dim=-1)
    return ~(best < NEGLIGIBLE * best.amax(dim=-1, keepdim=True))  # a NaN stays


def semantic_candidates(probabilities: Tensor) -> Tensor:
    r"""Classes that can be the most likely one of a pixel.

    With probabilities :math:`p_{qk}` and masks :math:`m_q`, class :math:`k` scores

    .. math::
        \sum_q p_{qk} m_q
        = \sum_q \frac{p_{qk}}{\max_j p_{qj}} \max_j p_{qj} m_q
        \le r_k \max_j \sum_q p_{qj} m_q, \qquad r_k = \sum_q \frac{p_{qk}}{\max_j p_{qj}},

    so it loses if :math:`r_k < 1`. The sum is over :func:`semantic_queries`.

    Args:
        probabilities: Class probabilities ``(..., Q, K + 1)``.

    Returns:
        Bool ``(..., K)``.
    """
    needed = semantic_queries(probabilities)
    scores = probabilities[..., :-1]
    ratios = (scores / scores.amax(dim=-1, keepdim=True)).where(needed[..., None], 0)
    candidates = ~(ratios.sum(-2) < 0.99)  # less than 1 by more than rounding; a NaN stays
    candidates[..., 0].fill_(True)  # wins where all scores are 0
    return candidates


class PanopticResult:
    """Panoptic segmentation of mmdet's ``MaskFormerFusionHead``, without its loop over queries.

    Args:
        probabilities: Class probabilities ``(Q, K + 1)``.
        size: Height and width of the image.
        test_cfg: ``object_mask_thr``, ``iou_thr``, ``filter_low_score``, ``segments_on`` and
            ``confidence_on``.
        num_things: Number of thing classes.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        probabilities: Tensor,
        size: tuple[int, int],
        test_cfg: dict[str, Any],
        num_things: int,
        num_classes: int,
    ) -> None:
        kept, scores, classes = panoptic_queries(probabilities, test_cfg, num_classes)
        (self._queries,) = _positions(probabilities, kept)
        self._scores, self._classes = scores[self._queries], classes[self._queries]
        self._num_things, self._num_classes = num_things, num_classes
        self._iou_thr = {**THRESHOLDS, **test_cfg}["iou_thr"]
        self._filter_low_score = test_cfg.get("filter_low_score", False)
        self._winners = torch.zeros(size, dtype=torch.int32, device=probabilities.device)
        self._unsure = torch.zeros_like(self._winners, dtype=torch.bool)
        self._areas = torch.zeros_like(self._queries)
        self._segments_on = test_cfg.get("segments_on", False)
        self._confidence_on = test_cfg.get("confidence_on", False)
        self._confidence: Tensor | None = None
        if self._segments_on or self._confidence_on:
            self._confidence = probabilities.new_zeros(size)

    def add(self, rows: slice, logits: Tensor, masks: Tensor) -> None:
        """Accumulate mask logits and their sigmoid, ``(Q, rows, W)``, of some rows of the image."""
        if not len(self._queries):
            return
        masks = _select(masks, self._queries)  # (N, rows, W)
        sure = masks >= 0.5
        self._areas += sure.flatten(1).sum(1)
        confidence, winners = (self._scores.view(-1, 1, 1) * masks).max(0)
        self._winners[rows] = winners
        if self._confidence is not None:
            self._confidence[rows] = confidence
        if self._filter_low_score:
            self._unsure[rows] = ~sure.gather(0, winners[None])[0]

    def fields(self) -> dict[str, PixelData | InstanceData]:
        """Return the panoptic fields of a data sample; ``test_cfg`` enables the last two.

        Returns:
            ``pred_panoptic_seg`` with ``sem_seg`` ``(1, H, W)`` int32, class + 1000 · object
            number; K for void. ``pred_segments``, see :meth:`_scored`. ``pred_confidence`` with
            ``data`` ``(1, H, W)``, the class probability times the mask probability of the query
            that wins the pixel; 0 in void.
        """
        values = self._values() if len(self._queries) else self._queries
        if len(values):
            segments = values[self._winners.long()].masked_fill_(self._unsure, self._num_classes)
        else:
            segments = torch.full_like(self._winners, self._num_classes)
        fields: dict[str, PixelData | InstanceData] = {}
        fields["pred_panoptic_seg"] = PixelData(sem_seg=segments[None])
        if self._confidence is not None:
            void = segments == self._num_classes
            confidence = self._confidence.masked_fill_(void, 0)
            if self._segments_on:
                fields["pred_segments"] = self._scored(values, confidence, void)
            if self._confidence_on:
                fields["pred_confidence"] = PixelData(data=confidence[None])
        return fields

    def _values(self) -> Tensor:
        """What the pixels that each query wins become, ``(N,)`` int32."""
        winners = self._winners.flatten().long()
        won = torch.zeros_like(self._areas).scatter_add_(0, winners, torch.ones_like(winners))
        stays = (won > 0) & (self._areas > 0)
        stays &= _share_reaches(won, self._areas, self._iou_thr, len(winners))
        things = stays & (self._classes < self._num_things)
        values = self._classes + things * things.cumsum(0) * INSTANCE_OFFSET
        return values.where(stays, self._num_classes).to(torch.int32)

    def _scored(self, values: Tensor, confidence: Tensor, void: Tensor) -> InstanceData:
        """Score of every segment: the mean confidence of its pixels.

        It is class probability · mean mask probability. A stuff segment may be won by several
        queries; the one with the most pixels represents it.

        Returns:
            ``ids``, the values of ``sem_seg`` without void in ascending order, and their
            ``labels``, ``scores`` and ``queries``.
        """
        if not len(values):
            none = self._queries
            return InstanceData(ids=none, labels=none, scores=self._scores, queries=none)
        # By rows first: in float32, long sums of single pixels would be rounded too often.
        sums = confidence.new_zeros(len(confidence), len(values))
        winners = self._winners.long()
        sums = sums.scatter_add_(1, winners, confidence).sum(0)
        pixels = torch.zeros_like(self._areas)
        pixels = pixels.scatter_add_(0, winners.flatten(), (~void).flatten().to(pixels.dtype))
        ids = values[pixels > 0].unique()
        members = ids[:, None] == values  # (segments, N)
        counts = pixels * members
        best = counts.argmax(1)
        return InstanceData(
            ids=ids.long(),
            labels=self._classes[best],
            scores=sums.where(members, 0).sum(1) / counts.sum(1),
            queries=self._queries[best],
        )


class CandidateResult(PanopticResult):
    """Panoptic segmentation of all queries, which shows what thresholds of scores leave out."""

    def __init__(
        self, probabilities: Tensor, size: tuple[int, int], test_cfg: dict[str, Any], *numbers: int
    ) -> None:
        super().__init__(probabilities, size, without_thresholds(test_cfg), *numbers)

    def fields(self) -> dict[str, PixelData | InstanceData]:
        """Return ``pred_candidate_seg``, in the form of ``pred_panoptic_seg``."""
        return dict(pred_candidate_seg=super().fields()["pred_panoptic_seg"])


class InstanceResult:
    """Instances of mmdet's ``MaskFormerFusionHead``, for any number of queries.

    mmdet fails if there are fewer than ``max_per_image`` pairs of a query and a class. Arguments
    are those of :class:`PanopticResult`; ``test_cfg`` has ``max_per_image``.
    """

    def __init__(
        self,
        probabilities: Tensor,
        size: tuple[int, int],
        test_cfg: dict[str, Any],
        num_things: int,
        num_classes: int,
    ) -> None:
        queries, classes, scores = best_pairs(probabilities, test_cfg, num_classes)
        is_thing = classes < num_things
        # A query may be in several pairs; its mask is computed once.
        pairs_of_query = torch.zeros_like(probabilities[:, 0], dtype=torch.int64)
        is_used = pairs_of_query.index_add_(0, queries, is_thing.long()) > 0
        things, self._queries = _positions(probabilities, is_thing, is_used)
        self._index = (is_used.cumsum(0) - 1)[queries[things]]
        self._classes, self._scores = classes[things], scores[things]
        shape = len(things), *size
        self._masks = torch.zeros(shape, dtype=torch.bool, device=probabilities.device)
        self._areas = torch.zeros_like(self._queries)
        self._sums = probabilities.new_zeros(len(self._queries), size[0])

    def add(self, rows: slice, logits: Tensor, masks: Tensor) -> None:
        """Accumulate mask logits and their sigmoid, ``(Q, rows, W)``, of some rows of the image."""
        positive = _select(logits, self._queries) > 0
        self._masks[:, rows] = positive[self._index]
        self._areas += positive.flatten(1).sum(1)
        self._sums[:, rows] = (_select(masks, self._queries) * positive).sum(2)

    def fields(self) -> dict[str, PixelData | InstanceData]:
        """Return ``pred_instances``: ``scores``, ``labels``, ``bboxes`` and ``masks``."""
        confidence = self._sums.sum(1) / (self._areas + 1e-6)
        left, right = extent(self._masks.any(1))
        top, bottom = extent((self._sums > 0)[self._index])
        instances = InstanceData(
            scores=self._scores * confidence[self._index],
            labels=self._classes,
            bboxes=torch.stack([left, top, right, bottom], dim=1).float(),
            masks=self._masks,
        )
        return dict(pred_instances=instances)


class SemanticResult:
    """Most likely class of every pixel, by the scores of :func:`semantic_scores`.

    Only :func:`semantic_candidates` are compared.

    Args:
        probabilities: Class probabilities ``(Q, K + 1)``.
        size: Height and width of the image.
    """

    def __init__(self, probabilities: Tensor, size: tuple[int, int]) -> None:
        (self._candidates,) = _positions(probabilities, semantic_candidates(probabilities))
        self._weights = probabilities[:, self._candidates].T
        self._winners = torch.zeros(size, dtype=torch.int64, device=probabilities.device)

    def add(self, rows: slice, logits: Tensor, masks: Tensor) -> None:
        """Accumulate mask logits and their sigmoid, ``(Q, rows, W)``, of some rows of the image."""
        scores = torch.einsum("kq,qhw->khw", self._weights, masks)
        self._winners[rows] = scores.max(0).indices  # on CPUs 3 to 5 times faster than argmax

    def fields(self) -> dict[str, PixelData | InstanceData]:
        """Return ``pred_sem_seg``: ``sem_seg`` ``(1, H, W)``."""
        return dict(pred_sem_seg=PixelData(sem_seg=self._candidates[self._winners][None]))


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
        masks = resize(full_precision(masks), size)
    resized = tuple(masks.shape[-2:]) == size
    numel = BAND_NUMEL if is_eager_cpu(masks) else RESIZED_NUMEL
    for rows in row_bands(height, row_numel, numel if resized else max(numel, 16 * row_numel)):
        band = masks[:, rows] if resized else _resize_rows(masks, size, rows)
        yield rows, full_precision(band)


def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize masks ``(Q, h, w)`` bilinearly."""
    # One channel an image, as in mmdet: other layouts round otherwise and may be four times slower.
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def _resize_rows(masks: Tensor, size: tuple[int, int], rows: slice) -> Tensor:
    """:func:`resize` for some rows alone: interpolate down the columns, then along the rows."""
    height = masks.shape[1]
    # A center is a fraction with this denominator: its numerator is exact in integers.
    denominator = 2 * size[0]
    centers = 2 * torch.arange(rows.start, rows.stop, device=masks.device) + 1
    centers = (centers * height - size[0]).clamp_min(0)
    above = centers // denominator
    below = (above + 1).clamp(max=height - 1)
    upper, lower = (full_precision(masks[:, index]) for index in (above, below))
    weight = (centers % denominator).to(upper.dtype) / denominator
    return resize(upper.lerp(lower, weight[:, None]), (rows.stop - rows.start, size[1]))


def _positions(probabilities: Tensor, *chosen: Tensor) -> list[Tensor]:
    """Indices of the true elements of each vector ``chosen``, in ascending order.

    Their numbers are all that is read back from the device, together. With them comes whether a
    class probability is NaN, so the warning of that costs no wait.
    """
    counts = torch.stack([flags.sum() for flags in (probabilities.isnan(), *chosen)]).tolist()
    if counts[0]:
        warnings.warn(
            "expected finite class logits, got NaN or Inf, which segment nothing; look at the "
            "weights of the checkpoint and at the images",
            stacklevel=2,
        )
    orders = [flags.int().argsort(descending=True, stable=True) for flags in chosen]
    return [order[:count] for order, count in zip(orders, counts[1:], strict=True)]


def _select(maps: Tensor, queries: Tensor) -> Tensor:
    """Maps of some queries, without a copy if these are all, as they often are."""
    return maps if len(queries) == len(maps) else maps.index_select(0, queries)


def _share_reaches(parts: Tensor, wholes: Tensor, threshold: float, largest: int) -> Tensor:
    """Whether ``part / whole >= threshold`` in Python's arithmetic, which is mmdet's.

    Quotients of integers up to ``largest`` are compared without float64: no quotient lies between
    the threshold and the nearest fraction of a denominator up to ``largest``.
    """
    nearest = Fraction(threshold).limit_denominator(largest)
    parts, wholes = parts * nearest.denominator, wholes * nearest.numerator
    # As a float: 4/5 is less than 0.8, and equal to it in mmdet.
    return parts >= wholes if float(nearest) >= threshold else parts > wholes


def extent(filled: Tensor) -> tuple[Tensor, Tensor]:
    """First true position of each row of ``(..., L)``, and the one after the last; 0 if none."""
    ends = torch.arange(1, filled.shape[-1] + 1, device=filled.device)
    return filled.int().argmax(-1), (filled * ends).amax(-1)
