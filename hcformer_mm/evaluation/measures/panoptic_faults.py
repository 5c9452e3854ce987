r"""Faults: the kinds of error that make up the loss of PQ, segment by segment.

The loss of a category is a sum over its segments. With :math:`D = TP + (FP + FN) / 2`,

.. math::
    1 - PQ = \frac{1}{D} \left( \sum_{TP} (1 - IoU) + \sum_{FP} \frac12 + \sum_{FN} \frac12 \right).

Each term of the prediction is a fault of one kind. Oracle labels of the clusters have such terms as
well, each of a true segment. With these subtracted, faults add up to the share of classification.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from panopticapi.evaluation import PQStat

from .panoptic_quality import (
    Categories,
    PanopticTruth,
    SegmentMap,
    SegmentMatches,
    iou_of,
    match_segments,
    total_counts,
)

MISSED, BELOW_THRESHOLD, WRONG_CLASS = "missed", "below_threshold", "wrong_class"
SPLIT_OR_MERGED, BACKGROUND, INEXACT = "split_or_merged", "background", "inexact"
KINDS = (MISSED, BELOW_THRESHOLD, WRONG_CLASS, SPLIT_OR_MERGED, BACKGROUND, INEXACT)

MIN_IOU = 0.1
"""Least IoU of an inexact segment, as in TIDE (Bolya et al., ECCV 2020)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Loss of one segment.

    Attributes:
        kind: One of :data:`KINDS`.
        category: Category whose PQ it lowers.
        lost: Loss of the prediction: 1 - IoU of a match, 1/2 of a missed or a false segment.
        decoding: Loss of the true segment with oracle labels of the clusters.
        true: True segment; None if there is none.
        found: Predicted segment; None if there is none.
    """

    kind: str
    category: int
    lost: float
    decoding: float
    true: int | None
    found: int | None


def panoptic_faults(
    prediction: SegmentMap,
    oracle: SegmentMap,
    truth: PanopticTruth,
    candidates: SegmentMap | None = None,
) -> list[Fault]:
    """List the faults of all matched, missed and false segments of an image.

    A match is ``inexact``. Another segment is of the first kind that applies:

    - ``wrong_class``: a true and a predicted segment of different categories have an IoU above 1/2;
    - ``split_or_merged``: several segments lie mostly in one segment of the other segmentation, all
      of one category, and the IoU of their union with it is above 1/2;
    - ``below_threshold``: a missed segment matches a candidate;
    - ``inexact``: a true and a predicted segment of one category, neither of which matches any,
      have an IoU of at least :data:`MIN_IOU`;
    - ``missed`` or ``background``: whatever is left of missed and of false segments.

    Args:
        prediction: The prediction.
        oracle: Oracle labels of the clusters.
        truth: The ground truth.
        candidates: The prediction without thresholds of scores; None if it is unknown.
    """
    matches = match_segments(*prediction, truth)
    kinds = _kinds(matches, prediction[1], truth)
    decoding = _losses(match_segments(*oracle, truth))
    matching = () if candidates is None else match_segments(*candidates, truth).hits
    known = {true for true, _, _ in matching}
    faults = []
    for true, found, iou in matches.hits:
        category = prediction[1][found]
        faults.append(Fault(INEXACT, category, 1 - iou, decoding.pop(true, 0.0), true, found))
    for true, category in matches.missed.items():
        kind = kinds.get((true, None), MISSED)
        if kind in (MISSED, INEXACT) and true in known:
            kind = BELOW_THRESHOLD
        faults.append(Fault(kind, category, 0.5, decoding[true], true, None))
    for found, category in matches.false.items():
        kind = kinds.get((None, found), BACKGROUND)
        faults.append(Fault(kind, category, 0.5, 0.0, None, found))
    return faults


def fault_losses(
    images: Iterable[Iterable[Fault]],
    prediction: Iterable[PQStat],
    oracle: Iterable[PQStat],
    categories: Collection[int],
) -> list[dict[str, float]]:
    """Part of the share of classification that each image makes up, by kind of fault.

    Args:
        images: Faults of every image.
        prediction: Counts of the prediction of every image.
        oracle: Counts of oracle labels of the clusters of every image.
        categories: Categories over which PQ is averaged.

    Returns:
        For each image, losses in percent. Those of all images and kinds add up to the share.
    """
    ours, theirs = (_weights(total_counts(counts), categories) for counts in (prediction, oracle))
    losses = []
    for faults in images:
        losses.append(dict.fromkeys(KINDS, 0.0))
        for one in faults:
            losses[-1][one.kind] += one.lost * ours.get(one.category, 0.0)
            losses[-1][one.kind] -= one.decoding * theirs.get(one.category, 0.0)
    return losses


def _weights(stat: PQStat, categories: Collection[int]) -> dict[int, float]:
    """Loss of PQ, in percent, for a loss of 1 in each category that occurs."""
    counts = {category: stat[category] for category in categories}
    sizes = {category: one.tp + (one.fp + one.fn) / 2 for category, one in counts.items()}
    number = sum(size > 0 for size in sizes.values())
    return {category: 100 / (number * size) for category, size in sizes.items() if size}


def _losses(oracle: SegmentMatches) -> dict[int, float]:
    """Loss of each true segment with oracle labels, which have its id."""
    losses: dict[int, float] = defaultdict(float)
    for true, _, iou in oracle.hits:
        losses[true] += 1 - iou
    for true in (*oracle.missed, *oracle.false):
        losses[true] += 0.5
    return losses


_Segment = tuple[int | None, int | None]
"""Id of a true segment, or of a predicted one."""


def _kinds(
    matches: SegmentMatches, categories: Categories, truth: PanopticTruth
) -> dict[_Segment, str]:
    """Kinds of missed and false segments that follow from pairs of a true and a predicted one."""
    areas: dict[_Segment, int] = {(None, found): area for found, area in matches.areas.items()}
    areas |= {(true, None): info["area"] for true, info in truth.infos.items()}
    hits = {segment for true, found, _ in matches.hits for segment in ((true, None), (None, found))}
    kinds: dict[_Segment, str] = {}
    parts: dict[_Segment, list[tuple[_Segment, int]]] = defaultdict(list)
    true_categories = truth.categories
    for (true, found), shared in matches.shared.items():
        if true not in true_categories or found not in categories:
            continue
        pair: tuple[_Segment, _Segment] = (true, None), (None, found)
        iou = iou_of(shared, areas[pair[0]], areas[pair[1]])
        if true_categories[true] != categories[found]:
            if iou > 0.5:
                kinds |= dict.fromkeys(pair, WRONG_CLASS)
            continue
        if iou >= MIN_IOU and not hits.intersection(pair):
            for segment in pair:
                kinds.setdefault(segment, INEXACT)
        for part, whole in (pair, pair[::-1]):
            if 2 * shared > areas[part]:
                parts[whole].append((part, shared))
    for whole, inside in parts.items():
        together = sum(areas[part] for part, _ in inside)
        shared = sum(shared for _, shared in inside)
        if len(inside) > 1 and iou_of(shared, together, areas[whole]) > 0.5:
            kinds |= dict.fromkeys((whole, *(part for part, _ in inside)), SPLIT_OR_MERGED)
    return kinds
