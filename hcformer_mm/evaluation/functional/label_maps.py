"""Label maps as they are given: checked, and numbered without gaps."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

LabelMap = ArrayLike | Tensor
"""Integers ``(H, W)``: an array, a tensor on any device, or lists."""

Ignore = int | ArrayLike | Tensor | None
"""Void of a ground truth: its value, or a mask ``(H, W)`` of bool; None if there is none."""


def check_label_maps(
    labels: LabelMap, ground_truth: LabelMap, ignore: Ignore
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Both label maps, and the pixels that are not void, each ``(H, W)``.

    Raises:
        ValueError: These are no label maps, or their sizes differ.
    """
    clustering = check_label_map(labels, "labels")
    truth = check_label_map(ground_truth, "ground_truth")
    if clustering.shape != truth.shape:
        raise ValueError(
            "expected clusters and ground truth of one size, got labels of "
            f"{clustering.shape} and ground_truth of {truth.shape}"
        )
    if ignore is None:
        return clustering, truth, np.ones(truth.shape, np.bool_)
    void = as_array(ignore)
    if void.dtype == np.bool_ and void.shape == truth.shape:
        return clustering, truth, ~void
    if void.ndim or not np.issubdtype(void.dtype, np.integer):
        raise ValueError(
            f"expected ignore as an integer, or as a mask of bool of the size {truth.shape}, got "
            f"{void.dtype} of {void.shape}"
        )
    return clustering, truth, truth != void


def check_label_map(labels: LabelMap, name: str) -> NDArray[Any]:
    """A label map as an array ``(H, W)``.

    Raises:
        ValueError: It is none.
    """
    array = as_array(labels)
    if array.ndim != 2 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"expected {name} as (H, W) integers, one pixel at least, got {array.dtype} of "
            f"{array.shape}"
        )
    return array


def as_array(values: Any) -> NDArray[Any]:
    """An array, from anything that is one."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)


def numbered(values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The values that occur, ordered, and for each item the number of its value."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if high - low >= 4 * values.size:  # too sparse for a table
        names, numbers = np.unique(values, return_inverse=True)
        return names.astype(np.int64), numbers.reshape(values.shape)
    shifted = values.astype(np.int64) - low
    used = np.bincount(shifted.ravel(), minlength=high - low + 1) > 0
    return np.flatnonzero(used) + low, (np.cumsum(used) - 1)[shifted]
