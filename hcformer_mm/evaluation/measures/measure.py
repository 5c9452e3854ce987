"""What measures of quality have in common: they are counted image by image."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""Clusters of an image, ``(H, W)``."""

Sample = Mapping[str, Any]
"""A predicted data sample as metrics get it: a dict."""


@dataclass(frozen=True)
class ImageGroundTruth:
    """Ground truth of one image.

    Attributes:
        segments: ``(H, W)`` integers: what clusters are compared with.
        void: ``(H, W)`` bool: the pixels without ground truth.
    """

    segments: NDArray[np.int64]
    void: NDArray[np.bool_]


Truth = TypeVar("Truth", bound=ImageGroundTruth)
Prediction = TypeVar("Prediction")
Counts = TypeVar("Counts")


class Measure(ABC, Generic[Truth, Prediction, Counts]):
    """Quality of the predictions of a dataset, as the hosts' metrics measure it.

    Any labeling of an image can be measured: what the model predicted, the ground truth itself,
    or what an oracle makes of given clusters. Of each image, small counts are kept.

    Attributes:
        names: Figures that it may return, the main one first.
    """

    names: tuple[str, ...]

    @abstractmethod
    def truth(self, sample: Sample) -> Truth:
        """Ground truth of an image.

        Raises:
            ValueError: There is none.
        """

    @abstractmethod
    def predicted(self, sample: Sample) -> Prediction:
        """What the model predicted.

        Raises:
            ValueError: There is no such prediction.
        """

    @abstractmethod
    def perfect(self, truth: Truth) -> Prediction:
        """The ground truth as a prediction."""

    @abstractmethod
    def oracle(self, truth: Truth, labels: Labels) -> Prediction:
        """Each cluster as the segment of the ground truth that has most of its pixels."""

    @abstractmethod
    def count(self, prediction: Prediction, truth: Truth) -> Counts:
        """What an image adds to the figures: small, and it can be pickled."""

    @abstractmethod
    def figures(self, counts: Sequence[Counts]) -> dict[str, float]:
        """Figures of a dataset, at best 100, by name; those that nothing defines are missing."""


def prediction_of(sample: Sample, field: str, what: str) -> Any:
    """A field of a predicted data sample.

    Raises:
        ValueError: There is none.
    """
    if field not in sample:
        raise ValueError(
            f"expected {field} in the predictions, to compare with {what} ground truth, got "
            f"{sorted(name for name in sample if name.startswith('pred_'))}"
        )
    return sample[field]


def check_categories(
    categories: Mapping[int, Mapping[str, Any]], classes: Sequence[str], ann_file: str
) -> None:
    """Raise a ValueError unless COCO annotations have a category for each class, and one only."""
    names = [category["name"] for category in categories.values()]
    wrong = [name for name in classes if names.count(name) != 1]
    if wrong:
        raise ValueError(
            f"expected one category in {ann_file} for every class of the model, got none or "
            f"several for {', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' * (len(wrong) > 4)}"
        )
