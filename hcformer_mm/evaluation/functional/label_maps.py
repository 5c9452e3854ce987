"""Validation and dense numbering of label maps."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

LabelMap = ArrayLike | Tensor
"""Integers ``(H, W)``: an array, a tensor on any device, or lists."""

Ignore = int | ArrayLike | Tensor | None
"""Void of a ground truth: its value, or an ``(H, W)`` bool mask; None if every pixel counts."""


def check_map_pair(
    labels: LabelMap, ground_truth: LabelMap, ignore: Ignore
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Return both label maps and the mask of pixels that are not void, each ``(H, W)``.

    Raises:
        ValueError: ``labels`` or ``ground_truth`` is not a label map, their sizes differ, or
            ``ignore`` is neither an integer nor a mask of their size.
    """
    clusters = check_label_map(labels, "labels")
    segments = check_label_map(ground_truth, "ground_truth")
    if clusters.shape != segments.shape:
        raise ValueError(
            "expected clusters and ground truth of one size, got labels of "
            f"{clusters.shape} and ground_truth of {segments.shape}"
        )
    if ignore is None:
        return clusters, segments, np.ones(segments.shape, np.bool_)
    void = as_array(ignore)
    if void.dtype == np.bool_ and void.shape == segments.shape:
        return clusters, segments, ~void
    if void.ndim or not np.issubdtype(void.dtype, np.integer):
        raise ValueError(
            f"expected ignore as an integer or as a bool mask of the size {segments.shape}, got "
            f"{void.dtype} of {void.shape}"
        )
    return clusters, segments, segments != void


def check_label_map(labels: LabelMap, name: str) -> NDArray[Any]:
    """Return a label map as an array ``(H, W)``.

    Raises:
        ValueError: The map is empty, not two-dimensional, or not of integers.
    """
    array = as_array(labels)
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"expected {name} as (H, W) integers, one pixel at least, got {array.dtype} of "
            f"{array.shape}"
        )
    return array


def as_array(values: Any) -> NDArray[Any]:
    """Convert an array, a tensor or lists to a NumPy array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def unique_inverse(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted unique values, and for each element the index of its value.

    Equals ``np.unique(values, return_inverse=True)`` but is several times faster for dense
    integers, since it counts instead of sorting.
    """
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if high - low >= 4 * values.size:  # too sparse to count
        unique, inverse = np.unique(values, return_inverse=True)
        return unique.astype(np.int64), inverse.reshape(values.shape)
    shifted = values.astype(np.int64) - low
    used = np.bincount(shifted.ravel(), minlength=high - low + 1) > 0
    return np.flatnonzero(used) + low, (np.cumsum(used) - 1)[shifted]
