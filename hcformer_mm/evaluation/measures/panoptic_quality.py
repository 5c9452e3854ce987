"""PanopticQuality: PQ of COCO, counted from label maps instead of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import mmcv
import numpy as np
from mmdet.datasets.api_wrappers import COCOPanoptic
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.fileio import get, get_local_path, join_path
from numpy.typing import NDArray
from panopticapi.evaluation import VOID, PQStat
from panopticapi.utils import rgb2id

from ..functional.superpixels import majority_map, overlaps
from .measure import ImageGroundTruth, Labels, Measure, Sample, check_categories, prediction_of

Categories = dict[int, int]
"""Category of each segment."""

SegmentMap = tuple[NDArray[np.int64], Categories]
"""Segments of the pixels, ``(H, W)``, and the category of each segment; others are void."""

CategoryCounts = dict[int, tuple[float, int, int, int]]
"""Of each category: sum of the IoU of matches, matches, false positives, false negatives."""


@dataclass(frozen=True)
class PanopticTruth(ImageGroundTruth):
    """Panoptic ground truth: crowds and pixels of no segment are void.

    Attributes:
        infos: ``segments_info`` of COCO by the segments' ids, crowds included.
    """

    infos: dict[int, dict[str, Any]]


class PanopticQuality(Measure[PanopticTruth, SegmentMap, CategoryCounts]):
    """PQ, PQ of things and PQ of stuff, as of ``mmdet.CocoPanopticMetric``.

    The host's computation reads and writes a PNG file per labeling; here there are many labelings
    of each image, so that it is done on arrays.

    Args:
        ann_file: Annotations in COCO's panoptic format.
        seg_prefix: Folder of their PNG files.
        classes: Names of the model's classes.
        backend_args: How the files are read, as everywhere in MMEngine.

    Raises:
        ValueError: The annotations lack one of the classes.
    """

    names = ("PQ", "PQ_th", "PQ_st")

    def __init__(
        self,
        ann_file: str,
        seg_prefix: str,
        classes: Sequence[str],
        *,
        backend_args: dict[str, Any] | None = None,
    ) -> None:
        with get_local_path(ann_file, backend_args=backend_args) as path:
            self._coco = COCOPanoptic(path)
        self._ann_file = ann_file
        self._seg_prefix = seg_prefix
        self._backend_args = backend_args
        # Labels are numbered by the order of the JSON's categories, as in the host's datasets.
        self._categories = self._coco.get_cat_ids(cat_names=classes)
        check_categories(self._coco.cats, classes, ann_file)
        self._num_classes = len(classes)
        self._first_is_thing = bool(self._coco.cats[self._categories[0]]["isthing"])

    def truth(self, sample: Sample) -> PanopticTruth:
        """Annotation of an image by its ``img_id``, and the PNG file named like the image.

        Raises:
            ValueError: The annotations do not have the image.
        """
        if sample["img_id"] not in self._coco.imgs:
            raise ValueError(f"expected image {sample['img_id']} in {self._ann_file}, got none")
        name = PurePath(sample["img_path"]).name.replace(".jpg", ".png")
        content = get(join_path(self._seg_prefix, name), backend_args=self._backend_args)
        ids = rgb2id(mmcv.imfrombytes(content, flag="color", channel_order="rgb")).astype(np.int64)
        infos = {info["id"]: info for info in self._coco.imgToAnns[sample["img_id"]]}
        known = [identity for identity, info in infos.items() if not info["iscrowd"]]
        return PanopticTruth(segments=ids, void=~np.isin(ids, known), infos=infos)

    def predicted(self, sample: Sample) -> SegmentMap:
        """``pred_panoptic_seg`` of the sample.

        Raises:
            ValueError: There is none.
        """
        prediction = prediction_of(sample, "pred_panoptic_seg", "panoptic")
        labels = prediction["sem_seg"].squeeze(0).cpu().numpy().astype(np.int64)
        void = {self._num_classes, prediction.get("ignore_index", self._num_classes)}
        segments = {
            int(label): self._categories[label % INSTANCE_OFFSET]
            for label in np.unique(labels)
            if label % INSTANCE_OFFSET not in void
        }
        if self._first_is_thing:
            # Things are numbered from 1, so that no thing of class 0 has the label 0: it is the
            # mark of void that CocoPanopticMetric leaves in the prediction if it comes first.
            segments.pop(VOID, None)
        return labels, segments

    def perfect(self, truth: PanopticTruth) -> SegmentMap:
        """The segments themselves, without crowds."""
        return truth.segments, _categories(truth)

    def oracle(self, truth: PanopticTruth, labels: Labels) -> SegmentMap:
        """Each cluster as the segment that has most of its pixels; nothing where that is a crowd.

        A segment is charged for pixels of crowds but not for those of void, so a crowd has a vote.
        """
        unlabeled = ~np.isin(truth.segments, list(truth.infos))
        return majority_map(labels, truth.segments, ignore=unlabeled, void=VOID), _categories(truth)

    def count(self, prediction: SegmentMap, truth: PanopticTruth) -> CategoryCounts:
        """Matches and misses as of ``panopticapi``."""
        return panoptic_counts(*prediction, truth)

    def figures(self, counts: Sequence[CategoryCounts]) -> dict[str, float]:
        """Means over the categories that occur, in percent."""
        stat = PQStat()
        for image in counts:
            for category, values in image.items():
                _add(stat[category], *values)
        figures = {}
        for name, things in zip(self.names, (None, True, False), strict=True):
            kinds = {True, False} if things is None else {things}
            if any(bool(self._coco.cats[category]["isthing"]) in kinds for category in seen(stat)):
                averages, _ = stat.pq_average(self._coco.cats, isthing=things)
                figures[name] = 100 * float(averages["pq"])
        return figures


def seen(stat: PQStat) -> list[int]:
    """Categories that were found or missed."""
    return [
        category
        for category, values in stat.pq_per_cat.items()
        if values.tp + values.fp + values.fn
    ]


def panoptic_counts(
    ids: NDArray[np.int64], categories: Categories, truth: PanopticTruth
) -> CategoryCounts:
    """Compare predicted segments with the ground truth, as ``panopticapi`` does.

    A pair of one category matches if its IoU is above 1/2, void pixels not counting. A segment that
    matches none is no false positive if more than half of it is void, or crowd of its category.

    Args:
        ids: Predicted segments of the pixels, ``(H, W)``.
        categories: Category of each predicted segment that counts; it has a pixel at least.
        truth: Ground truth of the same size.
    """
    table = overlaps(ids, truth.segments)
    shared: dict[int, dict[int, int]] = {}  # by true, then by predicted segment
    for true, found, pixels in sorted(
        zip(
            table.segment_labels[table.segments].tolist(),
            table.cluster_labels[table.clusters].tolist(),
            table.pixels.tolist(),
            strict=True,
        )
    ):
        shared.setdefault(true, {})[found] = pixels
    areas = dict(zip(table.cluster_labels.tolist(), table.cluster_sizes.tolist(), strict=True))
    void = shared.get(VOID, {})

    stat = PQStat()
    matched_true, matched_found = set(), set()
    for true, row in shared.items():
        info = truth.infos.get(true)
        if info is None or info["iscrowd"]:
            continue
        for found, pixels in row.items():
            if categories.get(found) != info["category_id"]:
                continue
            union = areas[found] + info["area"] - pixels - void.get(found, 0)
            if pixels / union > 0.5:
                _add(stat[info["category_id"]], pixels / union, 1, 0, 0)
                matched_true.add(true)
                matched_found.add(found)

    crowds: dict[int, int] = {}  # the last one of each category
    for true, info in truth.infos.items():
        if true in matched_true:
            continue
        if info["iscrowd"]:
            crowds[info["category_id"]] = true
        else:
            _add(stat[info["category_id"]], 0.0, 0, 0, 1)
    for found, category in categories.items():
        if found in matched_found or found not in areas:
            continue
        excused = void.get(found, 0) + shared.get(crowds.get(category, VOID - 1), {}).get(found, 0)
        if excused / areas[found] <= 0.5:
            _add(stat[category], 0.0, 0, 1, 0)
    return {
        category: (values.iou, values.tp, values.fp, values.fn)
        for category, values in stat.pq_per_cat.items()
    }


def _categories(truth: PanopticTruth) -> Categories:
    return {
        identity: info["category_id"]
        for identity, info in truth.infos.items()
        if not info["iscrowd"]
    }


def _add(category: Any, iou: float, matches: int, false: int, missed: int) -> None:
    """Add to the counts of a category."""
    category.iou += iou
    category.tp += matches
    category.fp += false
    category.fn += missed
