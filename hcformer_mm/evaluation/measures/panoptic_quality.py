"""PanopticQuality: PQ of COCO, counted from label maps instead of files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import isnan
from operator import iadd
from typing import Any

import cv2
import mmcv
import numpy as np
from mmdet.datasets.api_wrappers import COCOPanoptic
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.fileio import get, get_local_path, join_path
from numpy.typing import NDArray
from panopticapi.evaluation import VOID, PQStat
from panopticapi.utils import rgb2id

from ...structures.arrays import Labels
from ...structures.data_samples import classes_of_ids
from ...structures.panoptic import Panoptic
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
        return {i: info["category_id"] for i, info in self.infos.items() if not _is_crowd(info)}


class PanopticQuality(Measure[PanopticTruth, SegmentMap, PQStat]):
    """PQ, PQ of things and PQ of stuff, equal to those of ``mmdet.CocoPanopticMetric``.

    ``panopticapi`` and mmdet read every labeling from a PNG file. Here, each image has many
    labelings, so matches are counted from arrays.

    Args:
        ann_file: Annotations in COCO's panoptic format.
        seg_prefix: Folder of their PNG files.
        classes: Names of the model's classes.
        backend_args: MMEngine's options for reading the files.
        coco: The content of ``ann_file``, if it is already read.

    Raises:
        ValueError: A class has no category in the annotations, or several, or there are too many.
    """

    names = ("PQ", "PQ_th", "PQ_st")

    def __init__(
        self,
        ann_file: str,
        seg_prefix: str,
        classes: Sequence[str],
        *,
        backend_args: dict[str, Any] | None = None,
        coco: COCOPanoptic | None = None,
    ) -> None:
        if coco is None:
            with get_local_path(ann_file, backend_args=backend_args) as path:
                coco = COCOPanoptic(path)
        self._coco = coco
        self._ann_file = ann_file
        self._seg_prefix = seg_prefix
        self._backend_args = backend_args
        # Labels follow the order of the JSON's categories, as in mmdet's datasets.
        self._categories = self._coco.get_cat_ids(cat_names=classes)
        check_categories(self._coco.cats, classes, ann_file)
        if len(classes) >= INSTANCE_OFFSET:
            raise ValueError(
                f"expected fewer than {INSTANCE_OFFSET} classes, since segment ids are class + "
                f"{INSTANCE_OFFSET} · instance, got {len(classes)}"
            )
        # mmdet derives the names of PNG files from those of images, if annotations give none.
        self._files = {
            annotation["image_id"]: annotation.get("file_name")
            for annotation in self._coco.dataset.get("annotations", [])
        }
        self._num_classes = len(classes)
        self._first_is_thing = bool(self._coco.cats[self._categories[0]]["isthing"])

    def truth(self, sample: Sample) -> PanopticTruth:
        """Look up the annotation by ``img_id``, and read the PNG file that it names."""
        image = sample["img_id"]
        if image not in self._coco.imgs:
            raise ValueError(f"expected image {image} in {self._ann_file}, got none")
        file = join_path(self._seg_prefix, self.png(image))
        try:
            content = get(file, backend_args=self._backend_args)
            pixels = mmcv.imfrombytes(content, flag="color", channel_order="rgb")
        except (OSError, cv2.error):  # OpenCV raises an error of its own for an empty file
            pixels = None
        if pixels is None:
            raise ValueError(f"expected the segments of image {image} as a PNG file, got {file}")
        if pixels.shape[:2] != tuple(sample["ori_shape"][:2]):
            raise ValueError(
                f"expected {file} of the size {tuple(sample['ori_shape'][:2])} of its image, got "
                f"{pixels.shape[:2]}"
            )
        ids = rgb2id(pixels).astype(np.int64)
        infos = {info["id"]: info for info in self._coco.imgToAnns.get(image, [])}
        known = [identity for identity, info in infos.items() if not _is_crowd(info)]
        return PanopticTruth(segments=ids, void=~np.isin(ids, known), infos=infos)

    def png(self, image: Any) -> str:
        """Return the path of the PNG file of an image, relative to ``seg_prefix``."""
        return self._files.get(image) or self._coco.imgs[image]["segm_file"]

    def predicted(self, sample: Sample) -> SegmentMap:
        """Read ``pred_panoptic_seg``."""
        return self._segments(sample, prediction_of(sample, "pred_panoptic_seg", "panoptic"))

    def candidates(self, sample: Sample) -> SegmentMap | None:
        """Read ``pred_candidate_seg``, the prediction without thresholds of scores, if it is there.

        ``test_cfg.candidates_on`` of :class:`~hcformer_mm.models.HCFormerFusionHead` adds it.
        """
        found = sample.get("pred_candidate_seg")
        return None if found is None else self._segments(sample, found)

    def _segments(self, sample: Sample, prediction: Any) -> SegmentMap:
        labels = prediction["sem_seg"].squeeze(0).cpu().numpy().astype(np.int64)
        void = {self._num_classes, prediction.get("ignore_index", self._num_classes)}
        what = f"the prediction of image {sample['img_id']}"
        found = classes_of_ids(labels, self._num_classes, void, what, INSTANCE_OFFSET)
        segments = {label: self._categories[number] for label, number in found.items()}
        if self._first_is_thing:
            # If mmdet's CocoPanopticMetric ran before, it has set void pixels of the prediction to
            # 0. No thing of class 0 has this label, since instances are numbered from 1.
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
        groups = pq_groups(total_counts(counts), self._coco.cats)
        values = (group["pq"] for group in groups.values())
        return {n: 100 * pq for n, pq in zip(self.names, values, strict=True) if not isnan(pq)}

    def panoptic(self, segments: SegmentMap) -> Panoptic:
        """Return segments with classes of the model instead of categories."""
        ids, categories = segments
        return Panoptic(ids, {i: self._categories.index(one) for i, one in categories.items()})

    @property
    def groups(self) -> dict[str, Mapping[int, Any]]:
        """Categories by id over which each figure is averaged, by its name."""
        return dict(zip(self.names, category_groups(self._coco.cats).values(), strict=True))


def total_counts(counts: Iterable[PQStat]) -> PQStat:
    """Sum the counts of images."""
    return reduce(iadd, counts, PQStat())


def category_groups(categories: Mapping[int, Any]) -> dict[str, Mapping[int, Any]]:
    """COCO's categories by id: ``All``, ``Things`` and ``Stuff``."""
    things = {i: category for i, category in categories.items() if category["isthing"] == 1}
    stuff = {i: category for i, category in categories.items() if i not in things}
    return dict(All=categories, Things=things, Stuff=stuff)


def pq_groups(stat: PQStat, categories: Mapping[int, Any]) -> dict[str, dict[str, float]]:
    """Average over all categories, those of things and those of stuff, by COCO's definition.

    Args:
        stat: Matches and errors of each category.
        categories: COCO's categories by id.

    Returns:
        :func:`pq_average` of ``All``, ``Things`` and ``Stuff``.
    """
    groups = category_groups(categories)
    return {name: pq_average(stat, group) for name, group in groups.items()}


def pq_average(stat: PQStat, categories: Mapping[int, Any]) -> dict[str, float]:
    """Return ``pq``, ``sq`` and ``rq`` in [0, 1], averaged over the ``n`` categories that occur.

    They are nan if none occurs, where ``panopticapi`` would divide by zero.
    """
    try:
        averages, _ = stat.pq_average(categories, isthing=None)
    except ZeroDivisionError:
        return dict.fromkeys(("pq", "sq", "rq"), float("nan")) | dict(n=0)
    return averages


@dataclass(frozen=True)
class SegmentMatches:
    """Predicted segments of an image matched with its true ones, as ``panopticapi`` does.

    Attributes:
        hits: True segment, predicted segment and IoU of each match.
        missed: Category of each true segment without a match.
        false: Category of each predicted segment without a match that counts as false.
        shared: Pixels that a true and a predicted segment share.
        areas: Pixels of each predicted segment that are not void.
    """

    hits: list[tuple[int, int, float]]
    missed: Categories
    false: Categories
    shared: dict[tuple[int, int], int]
    areas: dict[int, int]


def match_segments(
    ids: NDArray[np.int64], categories: Categories, truth: PanopticTruth
) -> SegmentMatches:
    """Match predicted segments with the ground truth as ``panopticapi`` does.

    Two segments of one category match if their IoU without void is above 1/2. An unmatched
    prediction is not false if more than half of it is void or crowd of its category.

    Args:
        ids: Predicted segment of each pixel, ``(H, W)``.
        categories: Category of each predicted segment; void is missing.
        truth: Ground truth of the same size.
    """
    table = overlaps(truth.segments, ids)
    pairs = table.pixels.tocoo()
    shared = {
        (int(table.cluster_labels[row]), int(table.segment_labels[column])): int(pixels)
        for row, column, pixels in zip(pairs.row, pairs.col, pairs.data, strict=True)
    }  # by true and predicted segment
    sizes = dict(zip(table.segment_labels.tolist(), table.segment_sizes.tolist(), strict=True))
    areas = {found: size - shared.get((VOID, found), 0) for found, size in sizes.items()}

    hits = []
    true_categories = truth.categories
    missed = dict(true_categories)
    unmatched = {found: category for found, category in categories.items() if found in areas}
    for (true, found), pixels in shared.items():
        category = true_categories.get(true)
        if category is None or categories.get(found) != category:
            continue
        iou = iou_of(pixels, truth.infos[true]["area"], areas[found])
        if iou > 0.5:
            hits.append((true, found, iou))
            missed.pop(true, None)
            unmatched.pop(found, None)
    crowds = {i["category_id"]: true for true, i in truth.infos.items() if _is_crowd(i)}
    false = {}
    for found, category in unmatched.items():
        crowd = shared.get((crowds[category], found), 0) if category in crowds else 0
        if (sizes[found] - areas[found] + crowd) / sizes[found] <= 0.5:
            false[found] = category
    return SegmentMatches(hits, missed, false, shared, areas)


def iou_of(shared: int, area: int, other: int) -> float:
    """Intersection over union of two areas that share some pixels."""
    return shared / (area + other - shared)


def panoptic_counts(ids: NDArray[np.int64], categories: Categories, truth: PanopticTruth) -> PQStat:
    """Sum IoUs, true positives, false positives and false negatives of each category.

    Arguments are those of :func:`match_segments`.
    """
    matches = match_segments(ids, categories, truth)
    stat = PQStat()
    for _, found, iou in matches.hits:
        stat[categories[found]].tp += 1
        stat[categories[found]].iou += iou
    for category in matches.missed.values():
        stat[category].fn += 1
    for category in matches.false.values():
        stat[category].fp += 1
    return stat


def _is_crowd(info: dict[str, Any]) -> bool:
    return bool(info.get("iscrowd"))
