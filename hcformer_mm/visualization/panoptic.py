"""Images of a segmentation: colored segments, outlined, with the names of their classes."""

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..structures.arrays import Labels, Mask, RGBImage
from ..structures.panoptic import Classes, Panoptic
from .arrays import boundary, check_same_size, gray_image
from .colors import shade
from .panels import font

Box = tuple[float, float, float, float]


def draw_panoptic(
    image: RGBImage,
    panoptic: Panoptic,
    classes: Classes,
    *,
    opacity: float = 0.6,
    like: Panoptic | None = None,
    text: int | None = None,
) -> RGBImage:
    """Lay the segments over an image without its colors, outlined and named.

    Args:
        image: The image, ``(H, W, 3)``.
        panoptic: Segments of the same size.
        classes: Names and colors; the objects of one thing class get shades of its color.
        opacity: Of the colors, 0 to 1.
        like: Another segmentation of the image, which is drawn without this argument. Objects
            that are also there get the same colors as there.
        text: Height of the names, in pixels; follows the image's size by default.
    """
    check_same_size(image, panoptic.segments)
    ids, segments = np.unique(panoptic.segments, return_inverse=True)
    segments = segments.reshape(panoptic.segments.shape)  # index into ids
    colors = _segment_colors(ids, panoptic, classes, like)
    blended = opacity * colors[segments] + (1 - opacity) * gray_image(image)
    drawn = blended.round().astype(np.uint8)

    drawn[boundary(segments, 2 * max(1, round(max(image.shape) / 800)))] = 255
    size = max(10, round(max(image.shape) / 28)) if text is None else text
    return _write_names(drawn, ids, segments, panoptic.categories, classes, size)


def _segment_colors(
    ids: Labels, panoptic: Panoptic, classes: Classes, like: Panoptic | None
) -> RGBImage:
    """RGB of each segment id, ``(N, 3)``: its class's color, each object in another shade."""
    palette = classes.colors()
    numbers = _object_numbers(panoptic, classes)
    if like is not None:
        numbers = _numbers_like(numbers, panoptic, like, _object_numbers(like, classes))
    colors = np.full((len(ids), 3), 128, np.uint8)  # void
    for i, segment in enumerate(ids.tolist()):
        if segment in panoptic.categories:
            colors[i] = shade(palette[panoptic.categories[segment]], numbers.get(segment, 0))
    return colors


def _object_numbers(panoptic: Panoptic, classes: Classes) -> dict[int, int]:
    """Number of each thing among those of its class, by the id of its segment."""
    counts: dict[int, int] = {}
    numbers = {}
    for segment in np.unique(panoptic.segments).tolist():
        category = panoptic.categories.get(segment)
        if category is not None and classes.is_object(category):
            numbers[segment] = counts[category] = counts.get(category, -1) + 1
    return numbers


def _numbers_like(
    numbers: Mapping[int, int], panoptic: Panoptic, like: Panoptic, theirs: Mapping[int, int]
) -> dict[int, int]:
    """The numbers of the objects of ``like`` that lie at the same place, and others for the rest.

    Of several candidates those go together that have most pixels in common.
    """
    check_same_size(np.empty((*panoptic.segments.shape, 3), np.uint8), like.segments)
    pairs = np.stack([panoptic.segments.ravel(), like.segments.ravel()], axis=1)
    pairs, overlap = np.unique(pairs, axis=0, return_counts=True)
    new: dict[int, int] = {}
    taken: set[int] = set()
    for segment, other in pairs[np.argsort(-overlap, kind="stable")].tolist():
        free = segment in numbers and segment not in new and other in theirs and other not in taken
        if free and panoptic.categories[segment] == like.categories[other]:
            new[segment] = theirs[other]
            taken.add(other)
    beyond = max(theirs.values(), default=-1) + 1
    return {segment: new.get(segment, beyond + number) for segment, number in numbers.items()}


def _write_names(
    drawn: RGBImage,
    ids: Labels,
    segments: Labels,
    categories: Mapping[int, int],
    classes: Classes,
    size: int,
) -> RGBImage:
    """Write each segment's class inside it, or above or below what it would hide.

    A name that would cover others is written smaller, or not at all. Each class that is there is
    named once; more names are written until they take a tenth of the image, those of large
    segments first, so that a crowd is still seen.
    """
    canvas = Image.fromarray(drawn)
    draw = ImageDraw.Draw(canvas)
    room = 0.1 * segments.size
    taken: list[Box] = []
    for i, first in _by_importance(ids, segments, categories):
        name = classes.names[categories[int(ids[i])]]
        if not name or not (first or room > 0):
            continue
        thing = name in classes.things
        for height in (size, max(10, round(0.75 * size))):
            style = font(height, bold=thing)
            edge = max(1, height // 9)
            extent = draw.textbbox((0, 0), name, style, anchor="mm", stroke_width=edge)
            free = _free_place(segments == i, extent, taken)
            if free is None:
                continue
            place, box = free
            taken.append(box)
            room -= (box[2] - box[0]) * (box[3] - box[1])
            color = "white" if thing else "#e8e8e8"
            draw.text(
                place, name, color, style, anchor="mm", stroke_width=edge, stroke_fill="#1a1a1a"
            )
            break
    return np.asarray(canvas)


def _by_importance(
    ids: Labels, segments: Labels, categories: Mapping[int, int]
) -> list[tuple[int, bool]]:
    """Segments that have a class, by area, but the largest one of each class (True) before all."""
    areas = np.bincount(segments.ravel(), minlength=len(ids))
    largest: dict[int, int] = {}
    others: list[tuple[int, bool]] = []
    for i in np.argsort(-areas, kind="stable").tolist():
        category = categories.get(int(ids[i]))
        if category is None:
            continue
        if largest.setdefault(category, i) != i:
            others.append((i, False))
    return [(i, True) for i in largest.values()] + others


def _free_place(
    mask: Mask, extent: Box, taken: Sequence[Box]
) -> tuple[tuple[float, float], Box] | None:
    """Where a name of this extent around its center can stand: its center and box."""
    height, width = mask.shape
    left, top, right, bottom = extent
    for x, y in _places(mask, extent, taken):
        # Names near the image's edge move inwards.
        x += max(0, -left - x) - max(0, right + x - width)
        y += max(0, -top - y) - max(0, bottom + y - height)
        box = (left + x, top + y, right + x, bottom + y)
        if not any(_overlap(box, other) for other in taken):
            return (x, y), box
    return None


def _places(mask: Mask, extent: Box, taken: Sequence[Box]) -> Iterator[tuple[float, float]]:
    """Centers (x, y) for the name of a segment, the best first."""
    left, top, right, bottom = extent
    height = bottom - top
    depth = _depth(mask)
    inner = _deepest(depth)
    for box in taken:  # centers at which the name would lie on another one
        rows = slice(max(0, round(box[1] - bottom)), max(0, round(box[3] - top)))
        columns = slice(max(0, round(box[0] - right)), max(0, round(box[2] - left)))
        depth[rows, columns] = 0
    free = _deepest(depth)
    if depth[free[::-1]] > 0.6 * height:
        yield free
        return
    _, parts = cv2.connectedComponents(mask.astype(np.uint8))
    rows_of, columns_of = np.nonzero(parts == parts[inner[::-1]])  # without what lies apart
    middle = (columns_of.min() + columns_of.max()) / 2
    above = rows_of.min() - bottom - 0.1 * height
    below = rows_of.max() + 1 - top + 0.1 * height
    fits = above + top >= 0, below + bottom <= len(mask)
    if fits[0]:
        yield middle, above
    if fits[1]:
        yield middle, below
    if not any(fits):
        yield inner


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _depth(mask: Mask) -> NDArray[np.float32]:
    """How far each pixel of a mask is from its border; the image's edge counts as one."""
    padded = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.array(depth, np.float32)


def _deepest(depth: NDArray[np.float32]) -> tuple[int, int]:
    """The point (x, y) that is farthest from the border."""
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)
