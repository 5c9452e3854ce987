"""What images are made of: arrays, their sizes, and the lines between regions.

An image is an ``(H, W, 3)`` uint8 RGB array. Label maps are ``(H, W)`` integer arrays of the size
of the image they are drawn on.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..structures.arrays import Labels, Mask, RGBImage


def panel_size(size: Sequence[int], *, target: int) -> tuple[int, int]:
    """Size (h, w) at which an image of ``size`` is drawn, its longer side about ``target``.

    Small images are enlarged by an integer, so that all cells stay squares of one size; large
    ones are divided by one.
    """
    height, width = size[:2]
    longer = max(height, width)
    if longer <= target:
        factor = round(target / longer)
        return height * factor, width * factor
    divisor = round(longer / target)
    return max(1, height // divisor), max(1, width // divisor)


def resize_image(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    """An image at another size (h, w): smooth where it grows, averaged where it shrinks."""
    if image.shape[:2] == size:
        return image
    grows = size[0] >= image.shape[0]
    method = cv2.INTER_CUBIC if grows else cv2.INTER_AREA
    resized = cv2.resize(image, (size[1], size[0]), interpolation=method)
    return np.asarray(resized, np.uint8)


def resize_map(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Labels, flags or flat colors at another size (h, w): a pixel takes what is at its center."""
    if array.shape[:2] == size:
        return array
    image = Image.fromarray(array.astype(np.int32) if array.ndim == 2 else array)
    return np.asarray(image.resize(size[::-1], Image.Resampling.NEAREST)).astype(array.dtype)


def gray_image(image: RGBImage) -> RGBImage:
    """An image without its colors, ``(H, W, 3)`` still."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.repeat(np.asarray(gray, np.uint8)[..., None], 3, axis=2)


def boundary(labels: Labels, width: int) -> Mask:
    """Pixels of the lines between differently labeled pixels, centered if the width is even."""
    lines = np.zeros(labels.shape, np.uint8)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return cv2.dilate(lines, np.ones((width, width), np.uint8)) > 0


def check_same_size(image: RGBImage, labels: NDArray[Any]) -> None:
    """Refuse an image that is none, and a map that does not lie on it.

    Raises:
        ValueError: Either is the case.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 RGB image (H, W, 3), got {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"expected labels of the image's size {image.shape[:2]}, got {labels.shape}"
        )
