"""Images of a segmentation: segments in color, outlined and named."""

from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import find_objects
from skimage.color import lab2rgb, rgb2lab
from skimage.util import map_array

from ..evaluation.functional.superpixels import overlaps
from ..ops.bands import BAND_NUMEL, row_bands
from ..structures.arrays import Labels, Mask, RGBImage
from ..structures.palette import distinct_colors
from ..structures.panoptic import Classes, Panoptic
from .arrays import boundary, check_same_size, gray_image
from .fonts import font, fonts_for

MODES = ("gray", "fill", "contours")
"""How segments are drawn: their colors over a gray image or over the image itself, or their
outlines on the image itself."""

TRACK_COLORS = 64
"""Tracks with as many others between their ids share a color."""


def draw_panoptic(
    image: RGBImage,
    panoptic: Panoptic,
    classes: Classes,
    *,
    mode: str = "gray",
    opacity: float = 0.6,
    shades: bool = True,
    like: Panoptic | None = None,
    names: bool = True,
    text: int | None = None,
    tracks: Mapping[int, int] | None = None,
    scores: bool = False,
) -> RGBImage:
    """Draw segments over the image, outlined and named.

    Args:
        image: The image, ``(H, W, 3)``.
        panoptic: Segments of the same size.
        classes: Names and colors.
        mode: One of :data:`MODES`.
        opacity: Opacity of the colors, 0 to 1, but for ``'contours'``.
        shades: Whether objects of one thing class get shades of its color. Outlines separate them
            in any case.
        like: Another segmentation of the image, drawn separately without this argument. An object
            that is in both has one color in both drawings.
        names: Whether to write the names of segments.
        text: Height of the names in pixels; by default it depends on the image's size.
        tracks: Id of the track of each object in a video, by segment id. It follows the class's
            name, and the object has a color of the track in place of the class.
        scores: Whether the score of a segment, if it is known, follows its name.

    Returns:
        The drawing, RGB uint8 ``(H, W, 3)``.

    Raises:
        ValueError: ``image`` is not an RGB image, the segments differ from it in size, one has a
            class that ``classes`` lacks, or there is no such mode.
    """
    check_same_size(image, panoptic.segments)
    if mode not in MODES:
        raise ValueError(f"expected a mode among {', '.join(MODES)}, got {mode!r}")
    unknown = set(panoptic.categories.values()) - set(range(len(classes.names)))
    if unknown:
        raise ValueError(
            f"expected segments of {len(classes.names)} classes, got classes {sorted(unknown)}"
        )
    ids = np.unique(panoptic.segments)
    segments = map_array(panoptic.segments, ids, np.arange(len(ids), dtype=np.int32))
    named = [panoptic.categories.get(segment) for segment in ids.tolist()]
    colors = _segment_colors(ids, panoptic, classes, like, shades=shades)
    tracks = tracks or {}
    for i, segment in enumerate(ids.tolist()):
        if segment in tracks:
            colors[i] = distinct_colors(TRACK_COLORS)[tracks[segment] % TRACK_COLORS]
    classed = np.array([category is not None for category in named])
    shares = np.where(classed & (mode == "fill"), opacity, 0.0)[:, None]
    drawn = np.empty_like(image)
    for rows in row_bands(len(image), image[0].size, BAND_NUMEL):
        under = gray_image(image[rows]) if mode == "gray" else image[rows]
        share = opacity if mode == "gray" else shares[segments[rows]]
        drawn[rows] = (share * colors[segments[rows]] + (1 - share) * under).round()
    if mode == "contours":
        lines = boundary(segments, 2 * max(1, round(max(image.shape) / 300))) & classed[segments]
        drawn[lines] = colors[segments[lines]]
    else:
        drawn[boundary(segments, 2 * max(1, round(max(image.shape) / 800)))] = 255
    if not names:
        return drawn
    size = max(10, round(max(image.shape) / 28)) if text is None else text
    numbers = [f" {tracks[segment]}" if segment in tracks else "" for segment in ids.tolist()]
    if scores:
        known = panoptic.scores
        shown = [f" {known[segment]:.2f}" if segment in known else "" for segment in ids.tolist()]
        numbers = [number + score for number, score in zip(numbers, shown, strict=True)]
    return _write_names(drawn, segments, named, numbers, classes, size)


def shade(color: RGBImage, nth: int) -> RGBImage:
    """Return the nth shade of an RGB color ``(3,)``, with another lightness and a similar hue.

    Shade 0 is the color itself.
    """
    if nth == 0:
        return color
    lab = rgb2lab(color[None, None] / 255.0)[0, 0]
    # Two low-discrepancy sequences: they fill an interval evenly for any number of objects.
    lightness, angle = (((nth * step) % 1) - 0.5 for step in (0.7549, 0.5698))
    turn = np.exp(1j * 1.2 * angle) * complex(lab[1], lab[2])
    lab[:] = np.clip(lab[0] + 44 * lightness, 25, 90), turn.real, turn.imag
    return (lab2rgb(lab[None, None])[0, 0] * 255).round().astype(np.uint8)


def _segment_colors(
    ids: Labels, panoptic: Panoptic, classes: Classes, like: Panoptic | None, *, shades: bool
) -> RGBImage:
    """RGB of each segment id, ``(N, 3)``: its class's color, or a shade of it for each object."""
    palette = classes.colors()
    numbers = _object_numbers(panoptic, classes) if shades else {}
    if like is not None and shades:
        numbers = _numbers_like(numbers, panoptic, like, _object_numbers(like, classes))
    colors = np.full((len(ids), 3), 128, np.uint8)  # void
    for i, segment in enumerate(ids.tolist()):
        if segment in panoptic.categories:
            colors[i] = shade(palette[panoptic.categories[segment]], numbers.get(segment, 0))
    return colors


def _object_numbers(panoptic: Panoptic, classes: Classes) -> dict[int, int]:
    """Number the objects of each class from 0, by segment id."""
    counts: dict[int, int] = {}
    numbers = {}
    for segment in np.unique(panoptic.segments).tolist():
        category = panoptic.categories.get(segment)
        if category is not None and classes.is_object(category):
            numbers[segment] = counts[category] = counts.get(category, -1) + 1
    return numbers


def _numbers_like(
    numbers: dict[int, int], panoptic: Panoptic, like: Panoptic, theirs: dict[int, int]
) -> dict[int, int]:
    """Give objects the numbers of overlapping objects of ``like``, and new numbers to the rest.

    Pairs of one class are matched greedily, the largest overlap first.
    """
    table = overlaps(panoptic.segments, like.segments)
    pairs = table.pixels.tocoo()
    order = np.argsort(-pairs.data, kind="stable")
    new: dict[int, int] = {}
    taken: set[int] = set()
    for segment, other in zip(
        table.cluster_labels[pairs.row[order]].tolist(),
        table.segment_labels[pairs.col[order]].tolist(),
        strict=True,
    ):
        free = segment in numbers and segment not in new and other in theirs and other not in taken
        if free and panoptic.categories[segment] == like.categories[other]:
            new[segment] = theirs[other]
            taken.add(other)
    beyond = max(theirs.values(), default=-1) + 1
    return {segment: new.get(segment, beyond + number) for segment, number in numbers.items()}


def _write_names(
    drawn: RGBImage,
    segments: Labels,
    categories: list[int | None],
    numbers: list[str],
    classes: Classes,
    size: int,
) -> RGBImage:
    """Write the class of each segment on it, or above or below a segment too thin for it.

    Each class is named on its largest segment. Other segments are named, large ones first, until
    names cover a tenth of the image. A name that would cover another one, or that the image has no
    room for, is written smaller, or not at all.

    Args:
        drawn: The image, ``(H, W, 3)``.
        segments: Index of the segment of each pixel, ``(H, W)``.
        categories: Class of each segment; None for void.
        numbers: What follows the name of each segment.
        classes: Names of the classes.
        size: Height of the names in pixels.
    """
    fonts = fonts_for(tuple(classes.names), classes.font)
    canvas = Image.fromarray(drawn)
    draw = ImageDraw.Draw(canvas)
    taken, covered = np.zeros(segments.shape, np.bool_), 0
    places = find_objects(segments + 1)
    areas = np.zeros(len(categories), np.int64)
    for rows in row_bands(len(segments), segments.shape[1], BAND_NUMEL):
        areas += np.bincount(segments[rows].ravel(), minlength=len(areas))
    by_area = np.argsort(-areas, kind="stable").tolist()
    largest = set({categories[i]: i for i in reversed(by_area)}.values())
    for i in sorted(by_area, key=lambda i: i not in largest):
        category = categories[i]
        if category is None or not (i in largest or covered < 0.1 * taken.size):
            continue
        name = classes.names[category]
        thing = name in classes.things
        for height in (size, max(10, round(0.75 * size))) if name else ():
            style, edge = font(height, bold=thing, file=fonts[name]), max(1, height // 9)
            written = name + numbers[i]
            left, top, right, bottom = map(
                round, draw.textbbox((0, 0), written, style, stroke_width=edge)
            )
            mask = segments[places[i]] == i
            corner = places[i][0].start, places[i][1].start
            place = _free_place(mask, corner, (bottom - top, right - left), taken)
            if place is None:
                continue
            y, x = place
            taken[y : y + bottom - top, x : x + right - left] = True
            covered += (bottom - top) * (right - left)
            color = "white" if thing else "#e8e8e8"
            draw.text(
                (x - left, y - top), written, color, style, stroke_width=edge, stroke_fill="#1a1a1a"
            )
            break
    return np.asarray(canvas)


def _free_place(
    mask: Mask, corner: tuple[int, int], box: tuple[int, int], taken: Mask
) -> tuple[int, int] | None:
    """Find a place (top, left) for a box (height, width) that covers no pixel of ``taken``.

    The box is centered where the segment is thickest. If the segment is too thin there, the box
    lies above or below its largest connected part instead, if the image has room for it.

    Args:
        mask: The segment within its bounding box, ``(h, w)``.
        corner: Top and left of the bounding box in the image.
        box: See above.
        taken: See above; ``(H, W)``.
    """
    height, width = box
    if height > taken.shape[0] or width > taken.shape[1]:
        return None
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    # A box around one of these pixels would cover a pixel that is taken.
    starts = [max(0, start - side) for start, side in zip(corner, box, strict=True)]
    near = taken[starts[0] :, starts[1] :]
    inside = tuple(
        slice(start - first, start - first + length)
        for start, first, length in zip(corner, starts, mask.shape, strict=True)
    )
    claimed = near[: inside[0].stop + height, : inside[1].stop + width].astype(np.uint8)
    depth[cv2.dilate(claimed, np.ones(box, np.uint8))[inside] > 0] = 0
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    centers = [(float(corner[0] + y), float(corner[1] + x))] if depth[y, x] > 0 else []
    if depth[y, x] <= 0.6 * height:
        *_, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        left, top, columns, rows, _ = parts[1 + parts[1:, cv2.CC_STAT_AREA].argmax()]
        top, left = corner[0] + top, corner[1] + left
        beside = (top - 0.6 * height, top + rows + 0.6 * height)
        fits = [center for center in beside if height / 2 <= center <= len(taken) - height / 2]
        centers = [(center, left + columns / 2) for center in fits] or centers
    for center in centers:
        top, left = (
            max(0, min(round(middle - side / 2), limit - side))
            for middle, side, limit in zip(center, box, taken.shape, strict=True)
        )
        if not taken[top : top + height, left : left + width].any():
            return top, left
    return None
