"""What there is to see of one image: its levels one by one, and the way of a pixel through them.

The image is shown at a size of its own, on which everything here works: tiny images are
enlarged, so that a pixel can be pointed at, and large ones reduced. Pixels are ``(y, x)`` of it.
Level 0 are the cells of the finest map; the levels 1 to L are those of the hierarchy, finest first;
above them, if there is a prediction, lie its segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hcformer_mm.ops import hierarchical_clusters
from hcformer_mm.ops.clusters import cells_under
from hcformer_mm.ops.neighborhood import coarse_size, out_of_bounds
from hcformer_mm.structures.arrays import Labels, Mask, RGBImage
from hcformer_mm.structures.panoptic import Classes, Panoptic
from hcformer_mm.visualization.arrays import (
    check_same_size,
    gray_image,
    panel_size,
    resize_image,
    resize_map,
)
from hcformer_mm.visualization.clusters import draw_boundaries, mean_colors, random_colors
from hcformer_mm.visualization.panoptic import draw_panoptic

Overlay = Literal["boundaries", "mean colors", "random colors", "prediction"]
OVERLAYS: tuple[Overlay, ...] = get_args(Overlay)

SHOWN_SIDE = 960
"""Longer side of the shown image, in pixels, about."""

DARK, LIGHT, MARK, FRAME = (16, 16, 16), (255, 255, 255), (255, 64, 64), (120, 190, 255)
"""Colors of outlines, of the selected pixel and of candidates."""

PANEL_SIDE = 360
"""Longer side, in pixels, of the image of one lit cluster."""

PANEL_CELLS = 8
"""Cells of a level along the shorter side of such an image, unless the whole has fewer."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """An image with all its levels, at the size at which it is shown; see :func:`explore`.

    Attributes:
        image: The image, ``(H, W, 3)``.
        maps: For each level, ``(H, W)``: which cell, cluster or segment a pixel belongs to. Cells
            and clusters are flat row-major indices into the map of their level.
        assignments: Soft assignment ``(9, H_i, W_i)`` of the levels 1 to L.
        cell: Height and width of a cell of the finest map, in pixels of ``image``.
        classes: Names and colors of the classes.
        prediction: What the model made of the image, if it did.
    """

    image: RGBImage
    maps: tuple[Labels, ...]
    assignments: tuple[Tensor, ...]
    cell: tuple[float, float]
    classes: Classes
    prediction: Panoptic | None

    @property
    def num_levels(self) -> int:
        """L, the number of levels of the hierarchy."""
        return len(self.assignments)

    def counts(self) -> tuple[int, ...]:
        """Number of cells, clusters or segments of every level."""
        return tuple(len(np.unique(level)) for level in self.maps)


@dataclass(frozen=True)
class Step:
    """One step of a pixel's way up: a cell of a map is assigned to cells of the next coarser one.

    Attributes:
        level: The level that the step leads to, 1 to L.
        cell: Row and column of the cell that is assigned.
        weights: Its weights, ``(3, 3)``: those of the candidates around its parent, sum 1.
        inside: ``(3, 3)``; which candidates lie inside the coarser map.
        candidates: Row and column of the first candidate, top left; it may lie outside.
        chosen: Row and column of the candidate that it belongs to: that of the largest weight.
        size: Rows and columns of the coarser map.
    """

    level: int
    cell: tuple[int, int]
    weights: NDArray[np.float64]
    inside: Mask
    candidates: tuple[int, int]
    chosen: tuple[int, int]
    size: tuple[int, int]


def explore(
    image: RGBImage,
    assignments: Sequence[Tensor],
    *,
    stride: int,
    input_size: tuple[int, int],
    classes: Classes,
    prediction: Panoptic | None = None,
) -> Exploration:
    """Prepare an image to be explored.

    Args:
        image: The image as it was given, ``(H, W, 3)`` uint8, RGB.
        assignments: Soft assignment ``(9, H_i, W_i)`` of every level, finest first.
        stride: Side of a cell of the finest map, in pixels of the image as the network saw it.
        input_size: Height and width of the image as the network saw it, without padding.
        classes: Names and colors of the classes.
        prediction: Segments of the size of ``image``.

    Raises:
        ValueError: The prediction is not of the image's size, or the assignments do not fit each
            other or the image.
    """
    shown = panel_size(image.shape, target=SHOWN_SIDE)
    batch = [assignment[None].cpu() for assignment in assignments]
    clusters = hierarchical_clusters(
        batch, image_size=input_size, stride=stride, output_size=shown, dense=False
    )
    rows, cols = (cells_under(new, old, stride) for new, old in zip(shown, input_size, strict=True))
    cells = rows[:, None] * batch[0].shape[-1] + cols
    maps = [cells.numpy(), *(labels[0].numpy() for labels in clusters)]
    if prediction is not None:
        check_same_size(image, prediction.segments)
        prediction = replace(prediction, segments=resize_map(prediction.segments, shown))
        maps.append(prediction.segments)
    return Exploration(
        image=resize_image(image, shown),
        maps=tuple(maps),
        assignments=tuple(assignment[0] for assignment in batch),
        cell=(stride * shown[0] / input_size[0], stride * shown[1] / input_size[1]),
        classes=classes,
        prediction=prediction,
    )


def draw_level(
    exploration: Exploration,
    level: int,
    overlay: Overlay,
    *,
    opacity: float = 1.0,
    pixel: tuple[int, int] | None = None,
) -> RGBImage:
    """Draw one level over the image.

    Args:
        exploration: The image.
        level: From 0 to the last.
        overlay: What is drawn: boundaries; every cluster in its mean or in a random color; the
            predicted segments in the colors of their classes, with the boundaries of the level.
        opacity: Of the overlay over the image, 0 to 1.
        pixel: A selected pixel; it is marked, and what it belongs to is outlined.

    Raises:
        ValueError: There is no such level, overlay or pixel, or no prediction to be drawn.
    """
    labels = _level(exploration, level)
    if not 0 <= opacity <= 1:
        raise ValueError(f"expected an opacity from 0 to 1, got {opacity}")
    layer = _layer(exploration, level, overlay)
    blended = opacity * layer + (1 - opacity) * exploration.image
    drawn = blended.round().astype(np.uint8)
    if pixel is None:
        return drawn
    _check_pixel(exploration, pixel)
    width = 2 * max(1, round(max(labels.shape) / 640))
    drawn = _outline(drawn, labels == labels[pixel], width)
    return _mark(drawn, pixel, radius=3 * width)


def trace(exploration: Exploration, pixel: tuple[int, int]) -> list[Step]:
    """The way of a pixel: its finest cell, the cell that this one belongs to, and so on up.

    Args:
        exploration: The image.
        pixel: The pixel.

    Returns:
        One step for each level from 1 to L.

    Raises:
        ValueError: There is no such pixel.
    """
    _check_pixel(exploration, pixel)
    steps = []
    cell = divmod(int(exploration.maps[0][pixel]), exploration.assignments[0].shape[-1])
    for level, assignment in enumerate(exploration.assignments, start=1):
        rows, cols = coarse_size(*assignment.shape[-2:])
        parent = (cell[0] // 2, cell[1] // 2)
        chosen = divmod(int(exploration.maps[level][pixel]), cols)
        steps.append(
            Step(
                level=level,
                cell=cell,
                weights=assignment[:, cell[0], cell[1]].double().view(3, 3).numpy(),
                inside=~out_of_bounds(rows, cols, assignment.device)[parent].view(3, 3).numpy(),
                candidates=(parent[0] - 1, parent[1] - 1),
                chosen=chosen,
                size=(rows, cols),
            )
        )
        cell = chosen
    return steps


def light_up(exploration: Exploration, level: int, pixel: tuple[int, int]) -> RGBImage:
    """Draw what a pixel belongs to at one level in the colors of the image, the rest in gray.

    The finer the level, the nearer to the pixel one looks; of the levels 1 to L, the nine candidate
    cells of the step that leads there are framed.

    Args:
        exploration: The image.
        level: From 0 to the last.
        pixel: The pixel.

    Returns:
        A part of the image that has its proportions, ``PANEL_SIDE`` pixels on the longer side.

    Raises:
        ValueError: There is no such level or pixel.
    """
    labels = _level(exploration, level)
    _check_pixel(exploration, pixel)
    whole = labels.shape
    rows, cols = _part(exploration, level, pixel)
    size = _scaled(whole, PANEL_SIDE / max(whole))
    mask = resize_map(labels[rows, cols] == labels[pixel], size)
    image = resize_image(exploration.image[rows, cols], size)

    drawn = image.copy()
    drawn[~mask] = 0.4 * gray_image(image)[~mask]
    offset = np.array([rows.start, cols.start])
    zoom = np.array(size) / labels[rows, cols].shape
    if 1 <= level <= exploration.num_levels:
        step = trace(exploration, pixel)[level - 1]
        side = np.array(exploration.cell) * 2**level  # of a cell of this level
        for first, number, width in ((step.candidates, 3, 1), (step.chosen, 1, 2)):
            edges = (np.array(first) + np.arange(number + 1)[:, None]) * side  # (number + 1, 2)
            drawn = _draw_cells(drawn, (edges - offset) * zoom, width)
    drawn = _outline(drawn, mask, 2)
    y, x = (np.array(pixel) + 0.5 - offset) * zoom
    return _mark(drawn, (int(y), int(x)), radius=3)


def _level(exploration: Exploration, level: int) -> Labels:
    if not 0 <= level < len(exploration.maps):
        raise ValueError(f"expected a level from 0 to {len(exploration.maps) - 1}, got {level}")
    return exploration.maps[level]


def _check_pixel(exploration: Exploration, pixel: tuple[int, int]) -> None:
    height, width = exploration.image.shape[:2]
    if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
        raise ValueError(f"expected a pixel (y, x) of an image of {height}x{width}, got {pixel}")


def _layer(exploration: Exploration, level: int, overlay: Overlay) -> RGBImage:
    """An overlay in full opacity."""
    image, labels = exploration.image, exploration.maps[level]
    if overlay == "boundaries":
        return draw_boundaries(image, labels)
    if overlay == "mean colors":
        return mean_colors(image, labels)
    if overlay == "random colors":
        return random_colors(np.unique(labels, return_inverse=True)[1].reshape(labels.shape))
    if overlay != "prediction":
        raise ValueError(f"expected one of {OVERLAYS} as overlay, got {overlay!r}")
    if exploration.prediction is None:
        raise ValueError("expected a prediction to draw, and the model made none")
    layer = draw_panoptic(image, exploration.prediction, exploration.classes, opacity=1)
    return draw_boundaries(layer, labels, color=DARK) if level <= exploration.num_levels else layer


def _part(exploration: Exploration, level: int, pixel: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns around a pixel that have the proportions of the whole image."""
    whole = exploration.image.shape[:2]
    share = 1.0
    if level <= exploration.num_levels:
        share = min(1.0, PANEL_CELLS * max(exploration.cell) * 2**level / min(whole))
    sides = _scaled((whole[0], whole[1]), share)
    starts = [
        min(max(0, center - side // 2), total - side)
        for center, side, total in zip(pixel, sides, whole, strict=True)
    ]
    return slice(starts[0], starts[0] + sides[0]), slice(starts[1], starts[1] + sides[1])


def _scaled(size: Sequence[int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _outline(drawn: RGBImage, mask: Mask, width: int) -> RGBImage:
    """Outline a region in white on black, which no overlay looks like."""
    labels = mask.astype(np.uint8)
    return draw_boundaries(
        draw_boundaries(drawn, labels, color=DARK, width=width + 2),
        labels,
        color=LIGHT,
        width=width,
    )


def _mark(drawn: RGBImage, pixel: tuple[int, int], *, radius: int) -> RGBImage:
    """Draw a ring around a pixel, that is seen on every color."""
    drawn = drawn.copy()
    center = (pixel[1], pixel[0])
    cv2.circle(drawn, center, radius, DARK, radius // 2 + 4, cv2.LINE_AA)
    cv2.circle(drawn, center, radius, LIGHT, radius // 2 + 2, cv2.LINE_AA)
    cv2.circle(drawn, center, radius, MARK, radius // 2, cv2.LINE_AA)
    return drawn


def _draw_cells(drawn: RGBImage, edges: NDArray[np.float64], width: int) -> RGBImage:
    """Draw the lines between and around cells, given the (y, x) of all of them."""
    drawn = drawn.copy()
    corners = edges.round().astype(int).tolist()
    (top, left), (bottom, right) = corners[0], corners[-1]
    for y, x in corners:
        cv2.line(drawn, (left, y), (right, y), FRAME, width)
        cv2.line(drawn, (x, top), (x, bottom), FRAME, width)
    return drawn
