"""Images of a clustering: its boundaries, its errors, its clusters in a color of their own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.color import rgb2lab

from ..structures.arrays import Labels, Mask, RGBImage
from ..structures.palette import distinct_colors
from .arrays import boundary, check_same_size, gray_image
from .colors import BOUNDARY_COLOR, ERROR_COLOR


def draw_boundaries(
    image: RGBImage,
    labels: Labels,
    *,
    color: Sequence[int] = BOUNDARY_COLOR,
    width: int | None = None,
    halo: bool = False,
) -> RGBImage:
    """Overlay the boundaries between differently labeled pixels.

    Args:
        image: The image, ``(H, W, 3)``.
        labels: ``(H, W)``.
        color: RGB of the lines.
        width: Of the lines, in pixels; an even number lies half on either side of the boundary. By
            default it follows the size of the clusters, so that many small ones do not hide the
            image.
        halo: Whether the image is darkened beside lines of 3 pixels or more, which are seen on
            everything then.
    """
    check_same_size(image, labels)
    if width is None:
        side = np.sqrt(labels.size / max(1, len(np.unique(labels))))
        width = max(1, min(round(side / 16), round(max(labels.shape) / 320)))
    drawn = image.copy()
    if halo:
        beside = boundary(labels, width + 2 * (width // 3))
        drawn[beside] = (0.6 * drawn[beside]).astype(np.uint8)
    drawn[boundary(labels, width)] = color
    return drawn


def draw_hierarchy(image: RGBImage, levels: Sequence[Labels]) -> RGBImage:
    """Overlay the boundaries of all levels: the coarser the level, the wider and brighter.

    Args:
        image: The image, ``(H, W, 3)``.
        levels: Nested ``(H, W)`` labels, finest first.
    """
    drawn = (0.5 * gray_image(image)).astype(np.uint8)
    line = max(image.shape) / 640
    # From dark blue to bright yellow, in even steps of lightness.
    start, end = np.array([60, 90, 170]), np.array(BOUNDARY_COLOR)
    for level, labels in enumerate(levels):
        share = level / max(1, len(levels) - 1)
        color = (start + share * (end - start)).astype(int).tolist()
        drawn = draw_boundaries(drawn, labels, color=color, width=max(1, round(line * 2**level)))
    return drawn


def draw_errors(image: RGBImage, errors: Mask, *, color: Sequence[int] = ERROR_COLOR) -> RGBImage:
    """Errors in a color on a pale image.

    Args:
        image: The image, ``(H, W, 3)``.
        errors: ``(H, W)``, True where something is wrong.
        color: RGB of the errors.
    """
    check_same_size(image, errors)
    drawn = 255 - (255 - gray_image(image)) // 2
    drawn[errors] = color
    return drawn


def mean_colors(image: RGBImage, labels: Labels) -> RGBImage:
    """Abstraction of an image: every cluster in the mean color of its pixels.

    Args:
        image: The image, ``(H, W, 3)``.
        labels: ``(H, W)``, at least 0 and best dense.
    """
    check_same_size(image, labels)
    flat = labels.ravel()
    count = np.bincount(flat).clip(min=1)
    sums = [np.bincount(flat, channel) for channel in image.reshape(-1, 3).T]
    means = np.stack(sums, axis=1) / count[:, None]  # (N, 3)
    return means.round().astype(np.uint8)[labels]


def random_colors(labels: Labels, *, seed: int = 0) -> RGBImage:
    """Every cluster in a random color that differs clearly from those of its neighbors.

    Args:
        labels: ``(H, W)``, at least 0 and best dense.
        seed: Of the choice; the same labels and seed give the same image.
    """
    random = np.random.default_rng(seed)
    colors = distinct_colors(64)
    lab = rgb2lab(colors[None] / 255.0)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)  # (64, 64)
    number = int(labels.max()) + 1
    # A cluster picks at random among the colors that stand out best from its colored neighbors.
    taste = random.uniform(0, 30, (number, len(colors)))
    chosen = np.full(number, -1)
    for label, neighbors in enumerate(_neighbors(labels, number)):
        used = chosen[neighbors]
        used = used[used >= 0]
        clearance = distance[:, used].min(1) if len(used) else np.full(len(colors), 60.0)
        chosen[label] = (np.minimum(clearance, 60) + taste[label]).argmax()
    return colors[chosen][labels]


def _neighbors(labels: Labels, number: int) -> list[NDArray[np.integer[Any]]]:
    """Labels that touch each of the labels 0 … number - 1 at a side of a pixel."""
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], axis=1) for a, b in sides])
    pairs = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    keys = np.unique(pairs[:, 0] * number + pairs[:, 1])
    return np.split(keys % number, np.searchsorted(keys, np.arange(1, number) * number))
