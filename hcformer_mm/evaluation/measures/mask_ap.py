"""MaskAP: COCO's average precision of instance masks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.fileio import load
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ...structures.arrays import Labels
from ..functional.coco_masks import encode_annotation
from ..functional.superpixels import majority_map
from .measure import ImageGroundTruth, Measure, Sample, check_categories, prediction_of

Detection = dict[str, Any]
"""An instance in COCO's result format, with a run-length encoded mask."""

BACKGROUND = 0


@dataclass(frozen=True)
class InstanceTruth(ImageGroundTruth):
    """Instances of an image: ``instances[i]`` is segment i + 1, and the background is segment 0.

    Attributes:
        image: Id of the image.
        instances: The annotated instances, without crowds, as detections of score 1.
    """

    image: int
    instances: list[Detection]


class MaskAP(Measure[InstanceTruth, list[Detection], tuple[int, list[Detection]]]):
    """Unrounded mask AP of ``mmdet.CocoMetric(metric='segm')``, by faster-coco-eval.

    When clusters are scored, the background is one segment, since a cluster that crosses an outline
    is wrong on one side. Crowds and pixels of several instances are void. An oracle gives each
    pixel to one instance, so it loses AP where instances overlap.

    Args:
        ann_file: Annotations in COCO's format.
        classes: Names of the model's classes.
        backend_args: MMEngine's options for reading the file.

    Raises:
        ValueError: A class has no category in the annotations, or several.
    """

    names = ("AP",)

    def __init__(
        self, ann_file: str, classes: Sequence[str], *, backend_args: dict[str, Any] | None = None
    ) -> None:
        self._ann_file = ann_file
        self._coco = index_instances(load(ann_file, backend_args=backend_args))
        self._categories = self._coco.getCatIds(catNms=list(classes))
        check_categories(self._coco.cats, classes, ann_file)

    def truth(self, sample: Sample) -> InstanceTruth:
        """Look up the annotations by ``img_id``."""
        image = sample["img_id"]
        if image not in self._coco.imgs:
            raise ValueError(f"expected image {image} in {self._ann_file}, got none")
        size = tuple(self._coco.imgs[image][side] for side in ("height", "width"))
        owners, segments = np.zeros((2, *size), np.int64)
        void = np.zeros(size, np.bool_)
        instances: list[Detection] = []
        for annotation in self._coco.imgToAnns.get(image, []):
            if annotation["category_id"] not in self._categories:
                continue
            try:
                encoded = encode_annotation(annotation, size)
            except ValueError as error:
                raise ValueError(f"{self._ann_file}: {error}") from None
            mask = coco_mask.decode(encoded).astype(np.bool_)
            if annotation.get("iscrowd"):
                void |= mask
                continue
            instances.append(_detection(image, annotation["category_id"], encoded, 1.0))
            owners += mask
            segments[mask] = len(instances)
        return InstanceTruth(segments, void | (owners > 1), image, instances)

    def predicted(self, sample: Sample) -> list[Detection]:
        """Read ``pred_instances``, which need masks."""
        instances = prediction_of(sample, "pred_instances", "instance")
        if "masks" not in instances:
            raise ValueError("expected masks of the predicted instances, got boxes alone")
        masks, labels = instances["masks"].cpu().numpy(), instances["labels"]
        scores = instances.get("mask_scores", instances["scores"])
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self._categories):
            raise ValueError(
                f"expected labels from 0 to {len(self._categories) - 1} in the prediction of image "
                f"{sample['img_id']}, got {sorted(set(labels.tolist()))}"
            )
        return [
            _detection(sample["img_id"], self._categories[int(label)], _encode(mask), float(score))
            for mask, label, score in zip(masks, labels, scores, strict=True)
        ]

    def perfect(self, truth: InstanceTruth) -> list[Detection]:
        """Return the annotated instances, which may overlap."""
        return truth.instances

    def oracle(self, truth: InstanceTruth, labels: Labels) -> list[Detection]:
        """Label each cluster with the instance, or the background, that overlaps it most."""
        chosen = majority_map(labels, truth.segments, ignore=truth.void, void=BACKGROUND)
        found = set(np.unique(chosen)) - {BACKGROUND}
        return [
            {**instance, "segmentation": _encode(chosen == segment)}
            for segment, instance in enumerate(truth.instances, start=1)
            if segment in found
        ]

    def count(
        self, prediction: list[Detection], truth: InstanceTruth
    ) -> tuple[int, list[Detection]]:
        """Return the image's id and the detections, which are ranked over all images."""
        return truth.image, prediction

    def figures(self, counts: Sequence[tuple[int, list[Detection]]]) -> dict[str, float]:
        """Compute AP over the images that were counted."""
        detections = [dict(detection) for _, found in counts for detection in found]
        evaluation = COCOeval_faster(
            self._coco,
            self._coco.loadRes(detections),
            "segm",
            print_function=logging.getLogger(__name__).debug,
        )
        evaluation.params.catIds = self._categories
        evaluation.params.imgIds = [image for image, _ in counts]
        evaluation.run()
        precision = float(evaluation.stats[0])
        return {} if precision < 0 else {"AP": 100 * precision}


def index_instances(content: dict[str, Any]) -> COCO:
    """Index COCO annotations, and change in place what faster-coco-eval does not read.

    It refuses sizes and ids like 480.0, and takes the object of id 0 for missed, as pycocotools.
    """
    annotations = content.setdefault("annotations", [])
    for image in content["images"]:
        image |= {side: int(image[side]) for side in ("height", "width")}
    unused = 1 + max((int(one["id"]) for one in annotations), default=0)
    for one in annotations:
        one["id"] = int(one["id"]) or unused
    return COCO(content)


def _detection(image: int, category: int, encoded: dict[str, Any], score: float) -> Detection:
    return dict(image_id=image, category_id=category, segmentation=encoded, score=score)


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run-length encode a mask ``(H, W)``."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))
