"""Measure: the interface of the quality measures, which count image by image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...structures.arrays import Labels
from ...utils.errors import some

Sample = Mapping[str, Any]
"""A predicted data sample as metrics receive it: a dict."""


@dataclass(frozen=True)
class ImageGroundTruth:
    """Ground truth of one image.

    Attributes:
        segments: ``(H, W)`` integers; the segments with which clusters are compared.
        void: ``(H, W)`` bool; pixels without ground truth.
    """

    segments: NDArray[np.int64]
    void: NDArray[np.bool_]


Truth = TypeVar("Truth", bound=ImageGroundTruth)
Prediction = TypeVar("Prediction")
Counts = TypeVar("Counts")


class Measure(ABC, Generic[Truth, Prediction, Counts]):
    """Quality of a labeling of a dataset, computed as the metrics of mmdet and mmseg compute it.

    A labeling is the model's prediction, the ground truth itself, or an oracle's labels of given
    clusters. Each image contributes small counts, from which the figures of the dataset follow.

    Attributes:
        names: Names of the figures, the main one first.
    """

    names: tuple[str, ...]

    @abstractmethod
    def truth(self, sample: Sample) -> Truth:
        """Read the ground truth of an image; raise a ValueError if there is none."""

    @abstractmethod
    def predicted(self, sample: Sample) -> Prediction:
        """Read the model's prediction; raise a ValueError if the sample has none of this kind."""

    def perfect(self, truth: Truth) -> Prediction:
        """Return the ground truth as a prediction."""
        return self.oracle(truth, truth.segments)

    @abstractmethod
    def oracle(self, truth: Truth, labels: Labels) -> Prediction:
        """Label each cluster of ``labels (H, W)`` with the segment that it overlaps most."""

    @abstractmethod
    def count(self, prediction: Prediction, truth: Truth) -> Counts:
        """Return the contribution of an image to the figures: small and picklable."""

    @abstractmethod
    def figures(self, counts: Sequence[Counts]) -> dict[str, float]:
        """Return the figures of a dataset in percent, without those that it does not define."""


def prediction_of(sample: Sample, field: str, task: str) -> Any:
    """Return a field of a predicted data sample; raise a ValueError if it is missing."""
    if field not in sample:
        raise ValueError(
            f"expected {field} in the predictions, to compare with {task} ground truth, got "
            f"{sorted(name for name in sample if name.startswith('pred_'))}"
        )
    return sample[field]


def check_categories(
    categories: Mapping[int, Mapping[str, Any]], classes: Sequence[str], ann_file: str
) -> None:
    """Raise a ValueError unless COCO annotations have exactly one category for each class."""
    names = [category["name"] for category in categories.values()]
    wrong = [name for name in classes if names.count(name) != 1]
    if wrong:
        raise ValueError(
            f"expected one category in {ann_file} for every class of the model, got none or "
            f"several for {some(wrong)}"
        )
