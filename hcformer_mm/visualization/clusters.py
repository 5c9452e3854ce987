"""Images of a clustering: boundaries, undersegmentation errors, mean and random colors."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from skimage.color import rgb2lab

from ..evaluation.functional.label_maps import unique_inverse
from ..structures.arrays import Labels, Mask, RGBImage
from ..structures.palette import distinct_colors
from .arrays import boundary, check_same_size, gray_image

BOUNDARY_COLOR = (255, 225, 25)
"""Yellow: rare in photographs, and bright for every kind of color vision."""

ERROR_COLOR = (220, 20, 30)
"""Red, darker than the pale image around it, so that it is visible without color vision."""


def draw_boundaries(
    image: RGBImage,
    labels: Labels,
    *,
    color: Sequence[int] = BOUNDARY_COLOR,
    width: int | None = None,
    halo: bool = False,
) -> RGBImage:
    """Overlay the boundaries between pixels of different labels.

    Args:
        image: The image, ``(H, W, 3)``.
        labels: ``(H, W)``.
        color: RGB of the lines.
        width: Width of the lines in pixels; an even width lies half on either side of the boundary.
            By default it depends on the size of the clusters, so that many small ones do not hide
            the image.
        halo: Whether to darken the image beside lines of 3 pixels or more, which makes them visible
            on any background.

    Returns:
        The drawing, RGB uint8 ``(H, W, 3)``.

    Raises:
        ValueError: ``image`` is not an RGB image, or the labels differ from it in size.
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

    Returns:
        The drawing, RGB uint8 ``(H, W, 3)``.

    Raises:
        ValueError: ``image`` is not an RGB image, or the labels differ from it in size.
    """
    for labels in levels:
        check_same_size(image, labels)
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
    """Color the pixels of ``errors (H, W)`` on a pale gray version of ``image (H, W, 3)``."""
    check_same_size(image, errors)
    drawn = 255 - (255 - gray_image(image)) // 2
    drawn[errors] = color
    return drawn


def mean_colors(image: RGBImage, labels: Labels) -> RGBImage:
    """Fill every cluster with the mean color of its pixels.

    The rounded result of ``skimage.color.label2rgb(kind="avg")``, in one pass over the pixels
    instead of one for each label.

    Args:
        image: The image, ``(H, W, 3)``.
        labels: ``(H, W)``.

    Returns:
        The drawing, RGB uint8 ``(H, W, 3)``.

    Raises:
        ValueError: ``image`` is not an RGB image, or the labels differ from it in size.
    """
    check_same_size(image, labels)
    _, labels = unique_inverse(labels)  # from 0, as memory grows with the largest
    flat = labels.ravel()
    sums = [np.bincount(flat, channel) for channel in image.reshape(-1, 3).T]
    means = np.stack(sums, axis=1) / np.bincount(flat)[:, None]  # (K, 3)
    return means.round().astype(np.uint8)[labels]


def random_colors(labels: Labels, *, seed: int = 0) -> RGBImage:
    """Fill every cluster with a random color that clearly differs from those of its neighbors.

    Args:
        labels: ``(H, W)``.
        seed: Seed of the choice.

    Returns:
        The drawing, RGB uint8 ``(H, W, 3)``.
    """
    colors = distinct_colors(64)
    lab = rgb2lab(colors[None] / 255.0)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)  # (64, 64)
    names, labels = unique_inverse(labels)
    number = len(names)
    # Random preferences decide among colors that differ about equally from the neighbors' colors.
    preference = np.random.default_rng(seed).uniform(0, 30, (number, len(colors)))
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    first, second = np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in sides], axis=1)
    # Booleans, since sums of integers would overflow, and a sum of zero is no neighbor.
    touching = csr_array((np.ones(len(first), np.bool_), (first, second)), shape=(number, number))
    touching = csr_array(touching + touching.T)
    chosen = np.full(number, -1)
    for label in range(number):
        used = chosen[touching.indices[touching.indptr[label] : touching.indptr[label + 1]]]
        used = used[used >= 0]
        clearance = distance[:, used].min(1) if len(used) else np.full(len(colors), 60.0)
        chosen[label] = (np.minimum(clearance, 60) + preference[label]).argmax()
    return colors[chosen][labels]
