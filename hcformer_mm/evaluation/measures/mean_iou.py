"""MeanIoU: intersection over union of classes, summed over a dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...structures.arrays import Labels
from ...structures.data_samples import classes_of_ids, void_label
from ..functional.superpixels import majority_map
from .measure import ImageGroundTruth, Measure, Sample, prediction_of

ClassMap = NDArray[np.int64]
"""Class of each pixel, ``(H, W)``."""

ClassCounts = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Classes that occur in an image, their intersections and their unions in pixels."""


class MeanIoU(Measure[ImageGroundTruth, ClassMap, ClassCounts]):
    """Unrounded mIoU of ``mmseg.IoUMetric`` and ``mmdet.SemSegMetric``.

    The segments of the ground truth are the regions of the classes, connected or not.

    Args:
        num_classes: Number of classes.
        ignore_index: Value of void pixels; by default 255, or 65535 of more than 255 classes.
    """

    names = ("mIoU",)

    def __init__(self, num_classes: int, *, ignore_index: int | None = None) -> None:
        self.num_classes = num_classes
        self.ignore_index = void_label(num_classes) if ignore_index is None else ignore_index

    @staticmethod
    def found_in(sample: Sample) -> bool:
        """Return whether a sample has semantic ground truth and a semantic prediction."""
        return "gt_sem_seg" in sample and "pred_sem_seg" in sample

    def truth(self, sample: Sample) -> ImageGroundTruth:
        """Read ``gt_sem_seg``."""
        if "gt_sem_seg" not in sample:
            raise ValueError(
                "expected gt_sem_seg in the data samples, got none; load the annotations in the "
                "test pipeline, after resizing"
            )
        classes = self._class_map(sample["gt_sem_seg"], f"ground truth of {sample.get('img_path')}")
        return ImageGroundTruth(segments=classes, void=classes == self.ignore_index)

    def predicted(self, sample: Sample) -> ClassMap:
        """Read ``pred_sem_seg``."""
        pixels = prediction_of(sample, "pred_sem_seg", "semantic")
        return self._class_map(pixels, f"prediction of {sample.get('img_path')}")

    def oracle(self, truth: ImageGroundTruth, labels: Labels) -> ClassMap:
        """Label each cluster with the most frequent class of its pixels."""
        return majority_map(labels, truth.segments, ignore=truth.void, void=self.ignore_index)

    def count(self, prediction: ClassMap, truth: ImageGroundTruth) -> ClassCounts:
        """Count intersections and unions."""
        known = ~truth.void
        found, true = prediction[known], truth.segments[known]
        # mmseg counts in float32, where a class ends at 2**24 pixels.
        intersection, *areas = (
            np.bincount(labels[(labels >= 0) & (labels < self.num_classes)], None, self.num_classes)
            for labels in (found[found == true], found, true)
        )
        union = areas[0] + areas[1] - intersection
        (classes,) = union.nonzero()
        return classes, intersection[classes], union[classes]

    def figures(self, counts: Sequence[ClassCounts]) -> dict[str, float]:
        """Average over the classes that occur."""
        intersection, union = np.zeros((2, self.num_classes), np.int64)
        for classes, shared, either in counts:
            intersection[classes] += shared
            union[classes] += either
        occurs = union > 0
        if not occurs.any():
            return {}
        return {"mIoU": 100 * float((intersection[occurs] / union[occurs]).mean())}

    def _class_map(self, pixels: Any, what: str) -> ClassMap:
        """Return pixel data of mmdet (``sem_seg``) or mmseg (``data``) as ``(H, W)``."""
        values = pixels["sem_seg"] if "sem_seg" in pixels else pixels["data"]
        classes = values.squeeze(0).cpu().numpy().astype(np.int64)
        classes_of_ids(classes, self.num_classes, (self.ignore_index,), f"the {what}")
        return classes
