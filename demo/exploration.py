"""Drawings of one image for the explorer: its levels, and the path of a pixel through them.

All functions work on the shown image, whose longer side has about ``SHOWN_SIDE`` pixels: small
images are enlarged, so that each pixel can be clicked, and large ones reduced. A pixel is given as
``(y, x)`` in the shown image. Level 0 holds the cells of the finest feature map, levels 1 to L the
clusters of the hierarchy, finest first, and the last level the predicted segments, if there are
any.
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
from hcformer_mm.ops.neighborhood import coarse_size
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

Overlay = Literal["boundaries", "mean colors", "random colors", "prediction", "confidence"]
OVERLAYS: tuple[Overlay, ...] = get_args(Overlay)

SHOWN_SIDE = 960
"""Approximate longer side of the shown image, in pixels."""

DARK, LIGHT, MARK, FRAME = (16, 16, 16), (255, 255, 255), (255, 64, 64), (120, 190, 255)
"""Colors of outlines, of the selected pixel and of candidates."""

PANEL_SIDE = 360
"""Longer side of the panel of one cluster, in pixels."""

PANEL_CELLS = 8
"""Cells along the shorter side of a panel, unless the whole image has fewer."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """An image with all its levels, at the size at which it is shown.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB.
        maps: Cell, cluster or segment of every pixel, ``(H, W)`` per level. Cells and clusters are
            flat row-major indices into the map of their level.
        assignments: Soft assignments ``(9, H_i, W_i)`` of levels 1 to L.
        cell: Height and width of a cell of the finest map, in pixels of ``image``.
        classes: Names and colors of the classes.
        prediction: Predicted segments, if there are any.
        confidence: Confidence of every pixel, ``(H, W)``, 0 to 1, if it is known.
    """

    image: RGBImage
    maps: tuple[Labels, ...]
    assignments: tuple[Tensor, ...]
    cell: tuple[float, float]
    classes: Classes
    prediction: Panoptic | None
    confidence: NDArray[np.float32] | None = None

    @property
    def num_levels(self) -> int:
        """Number of levels of the hierarchy, L."""
        return len(self.assignments)

    def counts(self) -> tuple[int, ...]:
        """Number of cells, clusters or segments of every level."""
        return tuple(len(np.unique(level)) for level in self.maps)

    def check(self, pixel: tuple[int, int], level: int = 0) -> None:
        """Raise a ValueError unless the image has the pixel and the level."""
        height, width = self.image.shape[:2]
        if not 0 <= level < len(self.maps):
            raise ValueError(f"expected a level from 0 to {len(self.maps) - 1}, got {level}")
        if not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise ValueError(
                f"expected a pixel (y, x) of an image of {height}x{width}, got {pixel}"
            )


@dataclass(frozen=True)
class Step:
    """One step of a pixel's path: a cell is assigned to a cell of the next coarser map.

    Attributes:
        level: The level that the step leads to, 1 to L.
        cell: Row and column of the finer cell.
        weights: Its weights ``(3, 3)`` on the candidates around its parent, which sum to 1.
        candidates: Row and column of the top left candidate; it may lie outside the map.
        chosen: Row and column of the candidate with the largest weight.
        size: Rows and columns of the coarser map.
    """

    level: int
    cell: tuple[int, int]
    weights: NDArray[np.float64]
    candidates: tuple[int, int]
    chosen: tuple[int, int]
    size: tuple[int, int]

    @property
    def inside(self) -> Mask:
        """Candidates that lie inside the coarser map, ``(3, 3)``."""
        places = np.add(self.candidates, np.moveaxis(np.indices((3, 3)), 0, -1))  # (3, 3, 2)
        return ((places >= 0) & (places < self.size)).all(axis=-1)


def explore(
    image: RGBImage,
    assignments: Sequence[Tensor],
    *,
    stride: int,
    input_size: tuple[int, int],
    classes: Classes,
    prediction: Panoptic | None = None,
    confidence: NDArray[np.float32] | None = None,
) -> Exploration:
    """Prepare an image for exploration.

    Args:
        image: The original image, ``(H, W, 3)`` uint8, RGB.
        assignments: Soft assignment ``(9, H_i, W_i)`` of every level, finest first.
        stride: Side of a cell of the finest map, in pixels of the network's input.
        input_size: Height and width of the network's input, without padding.
        classes: Names and colors of the classes.
        prediction: Segments at the size of ``image``.
        confidence: Confidence of its pixels, ``(H, W)``, 0 to 1.

    Raises:
        ValueError: The prediction has another size than the image, or the assignments do not fit
            each other or the image.
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
        confidence=None if confidence is None else resize_map(confidence, shown),
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
        overlay: Boundaries; mean or random colors of the clusters; or the predicted segments, or
            the confidence in them from blue (0) to yellow (1), with the boundaries of the level.
        opacity: Opacity of the overlay, 0 to 1.
        pixel: Selected pixel, which is marked, and its cluster outlined.

    Raises:
        ValueError: No such level, overlay, opacity or pixel, or no prediction or confidence to
            draw.
    """
    exploration.check(pixel or (0, 0), level)
    if not 0 <= opacity <= 1:
        raise ValueError(f"expected an opacity from 0 to 1, got {opacity}")
    layer = _layer(exploration, level, overlay)
    drawn = (opacity * layer + (1 - opacity) * exploration.image).round().astype(np.uint8)
    if pixel is None:
        return drawn
    labels = exploration.maps[level]
    width = 2 * max(1, round(max(labels.shape) / 640))
    return _mark(_outline(drawn, labels == labels[pixel], width), pixel, radius=3 * width)


def trace(exploration: Exploration, pixel: tuple[int, int]) -> list[Step]:
    """Return the path of a pixel from its finest cell up, one step per level from 1 to L.

    Raises:
        ValueError: The image has no such pixel.
    """
    exploration.check(pixel)
    steps = []
    cell = divmod(int(exploration.maps[0][pixel]), exploration.assignments[0].shape[-1])
    for level, assignment in enumerate(exploration.assignments, start=1):
        rows, cols = coarse_size(*assignment.shape[-2:])
        chosen = divmod(int(exploration.maps[level][pixel]), cols)
        steps.append(
            Step(
                level=level,
                cell=cell,
                weights=assignment[:, cell[0], cell[1]].double().view(3, 3).numpy(),
                candidates=(cell[0] // 2 - 1, cell[1] // 2 - 1),
                chosen=chosen,
                size=(rows, cols),
            )
        )
        cell = chosen
    return steps


def light_up(exploration: Exploration, level: int, pixel: tuple[int, int]) -> RGBImage:
    """Draw the cluster of a pixel in color and its surroundings in gray.

    The finer the level, the closer the view. At levels 1 to L, the nine candidates of the step to
    that level are framed.

    Returns:
        A cut-out of the image with its proportions, ``PANEL_SIDE`` pixels on the longer side.

    Raises:
        ValueError: No such level or pixel.
    """
    exploration.check(pixel, level)
    labels = exploration.maps[level]
    rows, cols = _cut_out(exploration, level, pixel)
    size = _scaled(labels.shape, PANEL_SIDE / max(labels.shape))
    mask = resize_map(labels[rows, cols] == labels[pixel], size)
    image = resize_image(exploration.image[rows, cols], size)
    drawn = np.where(mask[..., None], image, (0.4 * gray_image(image)).astype(np.uint8))
    offset = np.array([rows.start, cols.start])
    zoom = np.array(size) / labels[rows, cols].shape
    if 1 <= level <= exploration.num_levels:
        step = trace(exploration, pixel)[level - 1]
        side = np.array(exploration.cell) * 2**level  # of a cell of this level
        for first, number, width in ((step.candidates, 3, 1), (step.chosen, 1, 2)):
            edges = (np.array(first) + np.arange(number + 1)[:, None]) * side  # (number + 1, 2)
            _draw_grid(drawn, (edges - offset) * zoom, width)
    y, x = (np.array(pixel) + 0.5 - offset) * zoom
    return _mark(_outline(drawn, mask, 2), (int(y), int(x)), radius=3)


def _layer(exploration: Exploration, level: int, overlay: Overlay) -> RGBImage:
    """Draw an overlay at full opacity."""
    image, labels = exploration.image, exploration.maps[level]
    if overlay == "boundaries":
        return draw_boundaries(image, labels)
    if overlay == "mean colors":
        return mean_colors(image, labels)
    if overlay == "random colors":
        return random_colors(labels)
    if overlay not in OVERLAYS:
        raise ValueError(f"expected one of {OVERLAYS} as overlay, got {overlay!r}")
    if getattr(exploration, overlay) is None:
        raise ValueError(f"expected a {overlay} to draw, and the model made none")
    if overlay == "confidence":
        gray = (255 * np.nan_to_num(exploration.confidence)).round().astype(np.uint8)
        layer = cv2.applyColorMap(gray, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    else:
        layer = draw_panoptic(image, exploration.prediction, exploration.classes, opacity=1)
    return draw_boundaries(layer, labels, color=DARK) if level <= exploration.num_levels else layer


def _cut_out(exploration: Exploration, level: int, pixel: tuple[int, int]) -> tuple[slice, slice]:
    """Return rows and columns around a pixel, in the proportions of the whole image."""
    whole = exploration.image.shape[:2]
    share = 1.0
    if level <= exploration.num_levels:
        share = min(1.0, PANEL_CELLS * max(exploration.cell) * 2**level / min(whole))
    spans = []
    for center, side, total in zip(pixel, _scaled(whole, share), whole, strict=True):
        start = min(max(0, center - side // 2), total - side)
        spans.append(slice(start, start + side))
    return spans[0], spans[1]


def _scaled(size: Sequence[int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _outline(drawn: RGBImage, mask: Mask, width: int) -> RGBImage:
    """Outline a region in white on black, which stands out on every overlay."""
    labels = mask.astype(np.uint8)
    drawn = draw_boundaries(drawn, labels, color=DARK, width=width + 2)
    return draw_boundaries(drawn, labels, color=LIGHT, width=width)


def _mark(drawn: RGBImage, pixel: tuple[int, int], *, radius: int) -> RGBImage:
    """Draw a ring around a pixel, visible on every color."""
    drawn = drawn.copy()
    for color, extra in ((DARK, 4), (LIGHT, 2), (MARK, 0)):
        cv2.circle(drawn, pixel[::-1], radius, color, radius // 2 + extra, cv2.LINE_AA)
    return drawn


def _draw_grid(drawn: RGBImage, edges: NDArray[np.float64], width: int) -> None:
    """Draw, in place, the lines around cells, given the ``(y, x)`` of their edges."""
    corners = edges.round().astype(int).tolist()
    (top, left), (bottom, right) = corners[0], corners[-1]
    for y, x in corners:
        cv2.line(drawn, (left, y), (right, y), FRAME, width)
        cv2.line(drawn, (x, top), (x, bottom), FRAME, width)
