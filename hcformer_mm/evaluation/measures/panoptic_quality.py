"""PanopticQuality: PQ of COCO, counted from label maps instead of files."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from operator import iadd
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

from ...structures.arrays import Labels
from ..functional.superpixels import majority_map, overlaps
from .measure import ImageGroundTruth, Measure, Sample, check_categories, prediction_of

Categories = dict[int, int]
"""Category of each segment."""

SegmentMap = tuple[NDArray[np.int64], Categories]
"""Segment of each pixel, ``(H, W)``, and category of each segment; other segments are void."""


@dataclass(frozen=True)
class PanopticTruth(ImageGroundTruth):
    """Panoptic ground truth: crowds and pixels of no segment are void.

    Attributes:
        infos: COCO's ``segments_info`` by segment id, crowds included.
    """

    infos: dict[int, dict[str, Any]]

    @property
    def categories(self) -> Categories:
        """Category of each segment that is not a crowd."""
        return {i: info["category_id"] for i, info in self.infos.items() if not info["iscrowd"]}


class PanopticQuality(Measure[PanopticTruth, SegmentMap, PQStat]):
    """PQ, PQ of things and PQ of stuff, equal to those of ``mmdet.CocoPanopticMetric``.

    ``panopticapi`` and mmdet read every labeling from a PNG file. Here, each image has many
    labelings, so matches are counted from arrays.

    Args:
        ann_file: Annotations in COCO's panoptic format.
        seg_prefix: Folder of their PNG files.
        classes: Names of the model's classes.
        backend_args: MMEngine's options for reading the files.

    Raises:
        ValueError: A class has no category in the annotations, or several.
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
        # Labels follow the order of the JSON's categories, as in mmdet's datasets.
        self._categories = self._coco.get_cat_ids(cat_names=classes)
        check_categories(self._coco.cats, classes, ann_file)
        self._num_classes = len(classes)
        self._first_is_thing = bool(self._coco.cats[self._categories[0]]["isthing"])

    def truth(self, sample: Sample) -> PanopticTruth:
        """Look up the annotation by ``img_id``, and read the PNG file named like the image."""
        if sample["img_id"] not in self._coco.imgs:
            raise ValueError(f"expected image {sample['img_id']} in {self._ann_file}, got none")
        name = PurePath(sample["img_path"]).name.replace(".jpg", ".png")
        content = get(join_path(self._seg_prefix, name), backend_args=self._backend_args)
        ids = rgb2id(mmcv.imfrombytes(content, flag="color", channel_order="rgb")).astype(np.int64)
        infos = {info["id"]: info for info in self._coco.imgToAnns[sample["img_id"]]}
        known = [identity for identity, info in infos.items() if not info["iscrowd"]]
        return PanopticTruth(segments=ids, void=~np.isin(ids, known), infos=infos)

    def predicted(self, sample: Sample) -> SegmentMap:
        """Read ``pred_panoptic_seg``."""
        prediction = prediction_of(sample, "pred_panoptic_seg", "panoptic")
        labels = prediction["sem_seg"].squeeze(0).cpu().numpy().astype(np.int64)
        void = {self._num_classes, prediction.get("ignore_index", self._num_classes)}
        segments = {
            int(label): self._categories[label % INSTANCE_OFFSET]
            for label in np.unique(labels)
            if label % INSTANCE_OFFSET not in void
        }
        if self._first_is_thing:
            # If CocoPanopticMetric ran before, it has set void pixels of the prediction to 0. No
            # thing of class 0 has this label, since instances are numbered from 1.
            segments.pop(VOID, None)
        return labels, segments

    def oracle(self, truth: PanopticTruth, labels: Labels) -> SegmentMap:
        """Label each cluster with the segment, or the crowd, that overlaps it most.

        Crowds take part because their pixels, unlike void, lower the IoU of a segment.
        """
        unlabeled = ~np.isin(truth.segments, list(truth.infos))
        return majority_map(labels, truth.segments, ignore=unlabeled, void=VOID), truth.categories

    def count(self, prediction: SegmentMap, truth: PanopticTruth) -> PQStat:
        """Count matches and errors."""
        return panoptic_counts(*prediction, truth)

    def figures(self, counts: Sequence[PQStat]) -> dict[str, float]:
        """Average over the categories that occur."""
        total = reduce(iadd, counts, PQStat())
        figures = {}
        for name, isthing in zip(self.names, (None, True, False), strict=True):
            with suppress(ZeroDivisionError):  # no category of this kind occurs
                averages, _ = total.pq_average(self._coco.cats, isthing=isthing)
                figures[name] = 100 * float(averages["pq"])
        return figures


def panoptic_counts(ids: NDArray[np.int64], categories: Categories, truth: PanopticTruth) -> PQStat:
    """Match predicted segments with the ground truth as ``panopticapi`` does.

    Two segments of one category match if their IoU without void is above 1/2. An unmatched
    prediction is no false positive if more than half of it is void or crowd of its category.

    Args:
        ids: Predicted segment of each pixel, ``(H, W)``.
        categories: Category of each predicted segment; void is missing.
        truth: Ground truth of the same size.

    Returns:
        Sum of IoUs, true positives, false positives and false negatives of each category.
    """
    table = overlaps(truth.segments, ids)
    pairs = table.pixels.tocoo()
    shared = {
        (int(table.cluster_labels[row]), int(table.segment_labels[column])): int(pixels)
        for row, column, pixels in zip(pairs.row, pairs.col, pairs.data, strict=True)
    }  # by true and predicted segment
    areas = dict(zip(table.segment_labels.tolist(), table.segment_sizes.tolist(), strict=True))

    stat = PQStat()
    true_categories = truth.categories
    missed = dict(true_categories)
    unmatched = {found: category for found, category in categories.items() if found in areas}
    for (true, found), pixels in shared.items():
        category = true_categories.get(true)
        if category is None or categories.get(found) != category:
            continue
        union = truth.infos[true]["area"] + areas[found] - pixels - shared.get((VOID, found), 0)
        if pixels / union > 0.5:
            stat[category].tp += 1
            stat[category].iou += pixels / union
            missed.pop(true, None)
            unmatched.pop(found, None)
    for category in missed.values():
        stat[category].fn += 1
    crowds = {i["category_id"]: true for true, i in truth.infos.items() if i["iscrowd"]}
    for found, category in unmatched.items():
        crowd = shared.get((crowds[category], found), 0) if category in crowds else 0
        if (shared.get((VOID, found), 0) + crowd) / areas[found] <= 0.5:
            stat[category].fp += 1
    return stat
