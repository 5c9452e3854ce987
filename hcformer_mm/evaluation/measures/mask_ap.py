"""MaskAP: average precision of instances, of COCO."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from mmengine.fileio import load
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..functional.superpixels import majority_map
from .measure import ImageGroundTruth, Labels, Measure, Sample, check_categories, prediction_of

Detection = dict[str, Any]
"""A result in COCO's format."""

BACKGROUND = 0


@dataclass(frozen=True)
class InstanceTruth(ImageGroundTruth):
    """Instances of an image: the i-th has the segment i + 1, the background the segment 0.

    Attributes:
        image: Id of the image.
        annotations: Those of COCO, crowds excluded, with masks in COCO's run-length encoding.
    """

    image: int
    annotations: list[Detection]


class MaskAP(Measure[InstanceTruth, list[Detection], tuple[int, list[Detection]]]):
    """Mask AP as of ``mmdet.CocoMetric(metric='segm')``, computed by faster-coco-eval.

    As ground truth of clusters, the background is one segment, since a cluster that holds a part of
    an instance and of its surroundings is wrong about one of them. Void are crowds, and the pixels
    that several instances claim. An oracle gives a pixel to one instance, so that it loses these.

    Args:
        ann_file: Annotations in COCO's format.
        classes: Names of the model's classes.
        backend_args: How the file is read, as everywhere in MMEngine.

    Raises:
        ValueError: The annotations lack one of the classes.
    """

    names = ("AP",)

    def __init__(
        self, ann_file: str, classes: Sequence[str], *, backend_args: dict[str, Any] | None = None
    ) -> None:
        annotations = load(ann_file, backend_args=backend_args)
        annotations.setdefault("annotations", [])
        self._ann_file = ann_file
        self._coco = COCO(annotations)
        self._categories = self._coco.getCatIds(catNms=list(classes))
        check_categories(self._coco.cats, classes, ann_file)

    def truth(self, sample: Sample) -> InstanceTruth:
        """Annotations of an image by its ``img_id``.

        Raises:
            ValueError: The annotations do not have the image.
        """
        image = sample["img_id"]
        if image not in self._coco.imgs:
            raise ValueError(f"expected image {image} in {self._ann_file}, got none")
        size = tuple(self._coco.imgs[image][side] for side in ("height", "width"))
        claims, segments = np.zeros((2, *size), np.int64)
        void = np.zeros(size, np.bool_)
        kept = []
        for annotation in self._coco.imgToAnns.get(image, []):
            if annotation["category_id"] not in self._categories:
                continue
            encoded = self._coco.annToRLE(annotation)
            mask = coco_mask.decode(encoded).astype(np.bool_)
            if annotation.get("iscrowd"):
                void |= mask
                continue
            kept.append({**_detection(image, annotation["category_id"], encoded), "score": 1.0})
            claims += mask
            segments[mask] = len(kept)
        return InstanceTruth(
            segments=segments, void=void | (claims > 1), image=image, annotations=kept
        )

    def predicted(self, sample: Sample) -> list[Detection]:
        """``pred_instances`` of the sample, with masks.

        Raises:
            ValueError: There are none.
        """
        instances = prediction_of(sample, "pred_instances", "instance")
        if "masks" not in instances:
            raise ValueError("expected masks of the predicted instances, got boxes alone")
        scores = instances.get("mask_scores", instances["scores"])
        return [
            {
                **_detection(sample["img_id"], self._categories[int(label)], _encode(mask)),
                "score": float(score),
            }
            for mask, label, score in zip(
                instances["masks"].cpu().numpy(), instances["labels"], scores, strict=True
            )
        ]

    def perfect(self, truth: InstanceTruth) -> list[Detection]:
        """The annotated instances."""
        return truth.annotations

    def oracle(self, truth: InstanceTruth, labels: Labels) -> list[Detection]:
        """Each cluster as the instance, or the background, that has most of its pixels."""
        chosen = majority_map(labels, truth.segments, ignore=truth.void, void=BACKGROUND)
        found = set(np.unique(chosen)) - {BACKGROUND}
        return [
            {**annotation, "segmentation": _encode(chosen == segment)}
            for segment, annotation in enumerate(truth.annotations, start=1)
            if segment in found
        ]

    def count(
        self, prediction: list[Detection], truth: InstanceTruth
    ) -> tuple[int, list[Detection]]:
        """The detections, since they are ranked over all images, and the image's id."""
        return truth.image, prediction

    def figures(self, counts: Sequence[tuple[int, list[Detection]]]) -> dict[str, float]:
        """AP over the images that were counted, in percent."""
        detections = [dict(detection) for _, found in counts for detection in found]
        logger = logging.getLogger(__name__)
        evaluation = COCOeval_faster(
            self._coco,
            self._coco.loadRes(detections),
            "segm",
            print_function=logger.debug,
        )
        evaluation.params.catIds = self._categories
        evaluation.params.imgIds = [image for image, _ in counts]
        evaluation.run()
        precision = float(evaluation.stats[0])
        return {} if precision < 0 else {"AP": 100 * precision}


def _detection(image: int, category: int, encoded: dict[str, Any]) -> Detection:
    return dict(image_id=image, category_id=category, segmentation=encoded)


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Run-length encoding of a mask ``(H, W)``."""
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))
