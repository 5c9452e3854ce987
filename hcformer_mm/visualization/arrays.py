"""Sizes, checks and boundaries of the arrays that are drawn.

An image is an ``(H, W, 3)`` uint8 RGB array. A label map is an ``(H, W)`` integer array of its
image's size.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..structures.arrays import Labels, Mask, RGBImage


def panel_size(size: Sequence[int], *, target: int) -> tuple[int, int]:
    """Size (h, w) of a panel for an image of ``size``, its longer side about ``target``.

    A small image is enlarged by an integer, so that all cells stay squares of one size; a large one
    is divided by an integer.
    """
    height, width = size[:2]
    longer = max(height, width)
    if longer <= target:
        factor = round(target / longer)
        return height * factor, width * factor
    divisor = round(longer / target)
    return max(1, height // divisor), max(1, width // divisor)


def resize_image(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    """Resize an image to (h, w): bicubic to enlarge, averaging to reduce."""
    if image.shape[:2] == size:
        return image
    method = cv2.INTER_CUBIC if size[0] >= image.shape[0] else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), np.uint8)


def resize_map(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize labels, a mask or flat colors to (h, w): nearest to the center of each new pixel."""
    if array.shape[:2] == size:
        return array
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, array.shape, strict=False)
    )
    return array[rows[:, None], columns]


def gray_image(image: RGBImage) -> RGBImage:
    """Gray version of an image, ``(H, W, 3)``."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=2)


def boundary(labels: Labels, width: int) -> Mask:
    """Mask of lines of ``width`` pixels between different labels, centered if the width is even."""
    lines = np.zeros(labels.shape, np.uint8)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return cv2.dilate(lines, np.ones((width, width), np.uint8)) > 0


def check_same_size(image: RGBImage, labels: NDArray[Any]) -> None:
    """Raise a ValueError unless ``image`` is an RGB image and ``labels`` a map of its size."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"expected labels of the image's size {image.shape[:2]}, got {labels.shape}"
        )
