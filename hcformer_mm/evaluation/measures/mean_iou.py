"""MeanIoU: intersection over union of classes, summed over a dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmseg.evaluation import IoUMetric
from numpy.typing import NDArray

from ..functional.superpixels import majority_map
from .measure import ImageGroundTruth, Labels, Measure, Sample, prediction_of

Classes = NDArray[np.int64]
ClassCounts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Of the classes that an image has to do with: number, intersection and union in pixels."""


class MeanIoU(Measure[ImageGroundTruth, Classes, ClassCounts]):
    """MIoU as of ``mmseg.IoUMetric`` and ``mmdet.SemSegMetric``, which read the same samples.

    The segments of its ground truth are the regions of the classes, connected or not.

    Args:
        num_classes: Number of classes.
        ignore_index: Value of the void.
    """

    names = ("mIoU",)

    def __init__(self, num_classes: int, *, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    @staticmethod
    def found_in(sample: Sample) -> bool:
        """Whether a sample has semantic ground truth and a semantic prediction."""
        return "gt_sem_seg" in sample and "pred_sem_seg" in sample

    def truth(self, sample: Sample) -> ImageGroundTruth:
        """``gt_sem_seg`` of the sample.

        Raises:
            ValueError: There is none.
        """
        if "gt_sem_seg" not in sample:
            raise ValueError(
                "expected gt_sem_seg in the data samples, got none; load the annotations in the "
                "test pipeline, after the resizing"
            )
        classes = _class_map(sample["gt_sem_seg"])
        return ImageGroundTruth(segments=classes, void=classes == self.ignore_index)

    def predicted(self, sample: Sample) -> Classes:
        """``pred_sem_seg`` of the sample.

        Raises:
            ValueError: There is none.
        """
        return _class_map(prediction_of(sample, "pred_sem_seg", "semantic"))

    def perfect(self, truth: ImageGroundTruth) -> Classes:
        """The classes themselves."""
        return truth.segments

    def oracle(self, truth: ImageGroundTruth, labels: Labels) -> Classes:
        """Each cluster as the class that has most of its pixels."""
        return majority_map(labels, truth.segments, ignore=truth.void, void=self.ignore_index)

    def count(self, prediction: Classes, truth: ImageGroundTruth) -> ClassCounts:
        """Intersections and unions."""
        intersection, union, *_ = IoUMetric.intersect_and_union(
            torch.from_numpy(prediction),
            torch.from_numpy(truth.segments),
            self.num_classes,
            self.ignore_index,
        )
        classes = union.numpy().nonzero()[0]
        # The host counts in float32, exact for an image but not for the sum of many.
        return (
            classes,
            intersection.numpy()[classes].astype(np.int64),
            union.numpy()[classes].astype(np.int64),
        )

    def figures(self, counts: Sequence[ClassCounts]) -> dict[str, float]:
        """Mean over the classes that occur, in percent."""
        intersection, union = np.zeros((2, self.num_classes), np.int64)
        for classes, shared, either in counts:
            intersection[classes] += shared
            union[classes] += either
        occurs = union > 0
        if not occurs.any():
            return {}
        return {"mIoU": 100 * float((intersection[occurs] / union[occurs]).mean())}


def _class_map(pixels: Any) -> Classes:
    """Pixel data of mmdet (``sem_seg``) or mmseg (``data``) as ``(H, W)``."""
    values = pixels["sem_seg"] if "sem_seg" in pixels else pixels["data"]
    return values.squeeze(0).cpu().numpy().astype(np.int64)
