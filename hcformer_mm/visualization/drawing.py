"""Pictures of clusterings and segmentations: pure arrays in, a picture out.

A picture is an ``(H, W, 3)`` uint8 RGB array. Label maps are ``(H, W)`` integer arrays of the size
of the picture they are drawn on. The layouts follow Figures 5, III and IV of the paper.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.color import lab2rgb, rgb2lab

Picture = NDArray[np.uint8]
Labels = NDArray[np.integer[Any]]

BOUNDARY_COLOR = (255, 225, 25)


@dataclass(frozen=True)
class Panoptic:
    """A panoptic segmentation of one picture.

    Attributes:
        segments: ``(H, W)`` id of the segment that each pixel belongs to.
        categories: Index of the class of every segment id. Ids that are missing are void.
    """

    segments: Labels
    categories: Mapping[int, int]


@dataclass(frozen=True)
class Classes:
    """How the classes of a data set are named and coloured.

    Attributes:
        names: Name of each class.
        things: Names of those classes whose objects are countable.
        palette: RGB of each class; distinct colours are made up when it is None.
    """

    names: Sequence[str]
    things: frozenset[str] = frozenset()
    palette: Sequence[Sequence[int]] | None = None

    def colors(self) -> Picture:
        """RGB of each class, ``(K, 3)``."""
        if self.palette is not None:
            return np.asarray(self.palette, dtype=np.uint8)
        return distinct_colors(len(self.names))


def enlargement(size: Sequence[int], *, target: int = 1280) -> int:
    """Integer factor that brings the longer side of ``size`` (h, w) closest to ``target``."""
    return max(1, round(target / max(size[:2])))


def enlarge(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """Enlarge a label map by repetition, or a picture smoothly, by an integer factor."""
    if factor == 1:
        return array
    if array.ndim == 2:
        return array.repeat(factor, axis=0).repeat(factor, axis=1)
    return cv2.resize(array, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Label map at another size (h, w): each pixel takes the label under its centre."""
    rows, cols = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows[:, None], cols]


def draw_boundaries(
    image: Picture,
    labels: Labels,
    *,
    color: Sequence[int] = BOUNDARY_COLOR,
    width: int | None = None,
) -> Picture:
    """Overlay the boundaries between differently labelled pixels.

    Args:
        image: The picture, ``(H, W, 3)``.
        labels: ``(H, W)``.
        color: RGB of the lines.
        width: Of the lines, in pixels; an even number lies half on either side of the boundary. By
            default it follows the size of the clusters, so that many small ones do not hide the
            picture.
    """
    _check_same_size(image, labels)
    if width is None:
        side = np.sqrt(labels.size / max(1, len(np.unique(labels))))
        width = max(1, min(round(side / 16), round(max(labels.shape) / 320)))
    drawn = image.copy()
    drawn[_boundary(labels, width)] = color
    return drawn


def mean_colors(image: Picture, labels: Labels) -> Picture:
    """Abstraction of a picture: every cluster in the mean colour of its pixels.

    Args:
        image: The picture, ``(H, W, 3)``.
        labels: ``(H, W)``, at least 0 and best dense.
    """
    _check_same_size(image, labels)
    flat = labels.ravel()
    count = np.bincount(flat).clip(min=1)
    sums = [np.bincount(flat, channel) for channel in image.reshape(-1, 3).T]
    means = np.stack(sums, axis=1) / count[:, None]  # (N, 3)
    return means.round().astype(np.uint8)[labels]


def random_colors(labels: Labels, *, seed: int = 0) -> Picture:
    """Every cluster in a random colour that differs clearly from those of its neighbours.

    Args:
        labels: ``(H, W)``, at least 0 and best dense.
        seed: Of the choice; the same labels and seed give the same picture.
    """
    random = np.random.default_rng(seed)
    colors = distinct_colors(64)
    lab = rgb2lab(colors[None] / 255.0)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)  # (64, 64)
    number = int(labels.max()) + 1
    # A cluster picks at random among the colours that stand out best from its coloured neighbours.
    taste = random.uniform(0, 30, (number, len(colors)))
    chosen = np.full(number, -1)
    for label, neighbors in enumerate(_neighbors(labels, number)):
        used = chosen[neighbors]
        used = used[used >= 0]
        clearance = distance[:, used].min(1) if len(used) else np.full(len(colors), 60.0)
        chosen[label] = (np.minimum(clearance, 60) + taste[label]).argmax()
    return colors[chosen][labels]


def draw_panoptic(
    image: Picture, panoptic: Panoptic, classes: Classes, *, opacity: float = 0.6
) -> Picture:
    """Coloured segments with outlines and names over a picture; void stays grey.

    Args:
        image: The picture, ``(H, W, 3)``.
        panoptic: Segments of the same size.
        classes: Names and colours; the objects of one thing class get shades of its colour.
        opacity: Of the colours, 0 to 1.
    """
    _check_same_size(image, panoptic.segments)
    ids, segments = np.unique(panoptic.segments, return_inverse=True)
    segments = segments.reshape(panoptic.segments.shape)  # index into ids
    colors = _segment_colors(ids, panoptic.categories, classes)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended = opacity * colors[segments] + (1 - opacity) * gray
    drawn = blended.round().astype(np.uint8)

    drawn[_boundary(segments, 2 * max(1, round(max(image.shape) / 800)))] = 255
    return _write_names(drawn, ids, segments, panoptic.categories, classes)


@lru_cache
def distinct_colors(number: int) -> Picture:
    """Colours as different as can be, neither pale nor glaring, ``(number, 3)``; always the same.

    Each one is, of a grid of colours of middle lightness and chroma, the farthest in Lab space from
    those before it.
    """
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), axis=-1).reshape(-1, 3)
    lab = rgb2lab(grid[None] / 255.0)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    fit = (lab[:, 0] > 45) & (lab[:, 0] < 85) & (chroma > 25) & (chroma < 62)
    grid, lab = grid[fit].astype(np.uint8), lab[fit]
    chosen, distance = [int(lab[:, 2].argmin())], np.full(len(lab), np.inf)  # starts with a blue
    while len(chosen) < number:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=-1))
        chosen.append(int(distance.argmax()))
    colors = grid[chosen[:number]]
    colors.flags.writeable = False  # it is shared by all callers
    return colors


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet, with a title and a fainter note behind it if there is room."""

    image: Picture
    title: str
    note: str = ""


def sheet(rows: Sequence[Sequence[Panel | None]]) -> Picture:
    """Lay panels out in rows on white, every panel under its title.

    Args:
        rows: Panels of one size; a row may be shorter than others, None leaves a place empty.

    Raises:
        ValueError: There is no panel, or the panels differ in size.
    """
    panels = [panel for row in rows for panel in row if panel is not None]
    sizes = {panel.image.shape[:2] for panel in panels}
    if len(sizes) != 1:
        raise ValueError(f"expected panels of one size, got {sorted(sizes) or 'no panel'}")
    height, width = sizes.pop()
    text = max(11, round(width / 26))
    gap, head = round(text * 0.8), round(text * 1.8)
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB",
        (columns * (width + gap) + gap, len(rows) * (height + head) + gap),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            left, top = gap + j * (width + gap), head + i * (height + head)
            canvas.paste(Image.fromarray(panel.image), (left, top))
            base = top - round(text * 0.5)
            draw.text((left, base), panel.title, "#1a1a1a", _font(text, bold=True), anchor="ls")
            indent = draw.textlength(f"{panel.title}  ", _font(text, bold=True))
            if indent + draw.textlength(panel.note, _font(text)) <= width:
                place = (left + round(indent), base)
                draw.text(place, panel.note, "#707070", _font(text), anchor="ls")
    return np.asarray(canvas)


def cluster_sheet(
    image: Picture,
    clusters: Sequence[Labels],
    *,
    classes: Classes,
    prediction: Panoptic | None = None,
    ground_truth: Panoptic | None = None,
    factor: int | None = None,
) -> Picture:
    """One sheet that shows how a picture was segmented, level by level.

    The columns are the levels of the hierarchy, finest first, after a column with the picture
    itself, the prediction and the ground truth. The rows show the clusters of each level by their
    boundaries, by their mean colours and, if the first column has a third picture, in random
    colours.

    Args:
        image: The picture, ``(H, W, 3)``.
        clusters: For each level, finest first, ``(H, W)`` labels from 0.
        classes: Names and colours of the classes.
        prediction: What the model made of the picture.
        ground_truth: What is there.
        factor: Integer enlargement of the picture; chosen by its size when None.
    """
    factor = enlargement(image.shape) if factor is None else factor
    large = enlarge(image, factor)
    columns = [[Panel(large, "Image", f"{image.shape[1]}×{image.shape[0]}")]]
    for title, panoptic in (("Prediction", prediction), ("Ground truth", ground_truth)):
        if panoptic is not None:
            enlarged = replace(panoptic, segments=enlarge(panoptic.segments, factor))
            number = len(panoptic.categories)
            note = f"{number:,} segment{'s' * (number != 1)}" if number else "nothing found"
            columns[0].append(Panel(draw_panoptic(large, enlarged, classes), title, note))
    rows = max(2, len(columns[0]))
    for i, level in enumerate(clusters, start=1):
        labels, number = enlarge(level, factor), len(np.unique(level))
        column = [
            Panel(draw_boundaries(large, labels), f"Level {i}", f"{number:,} clusters"),
            Panel(mean_colors(large, labels), "Mean colours"),
            Panel(random_colors(labels), "Random colours"),
        ]
        columns.append(column[:rows])
    return sheet(list(itertools.zip_longest(*columns)))


def _segment_colors(ids: Labels, categories: Mapping[int, int], classes: Classes) -> Picture:
    """RGB of each segment id, ``(N, 3)``: its class's colour, each object in another shade."""
    palette = classes.colors()
    colors = np.full((len(ids), 3), 128, np.uint8)  # void
    objects: dict[int, int] = {}
    for i, segment in enumerate(ids.tolist()):
        if segment not in categories:
            continue
        category = categories[segment]
        nth = objects[category] = objects.get(category, -1) + 1
        if classes.names[category] in classes.things and nth:
            colors[i] = _shade(palette[category], nth)
        else:
            colors[i] = palette[category]
    return colors


def _shade(color: Picture, nth: int) -> Picture:
    """Relative of a colour: lighter or darker and a little off in hue, another one for each nth."""
    lab = rgb2lab(color[None, None] / 255.0)[0, 0]
    # Two sequences that fill an interval evenly, whatever the number of objects.
    lightness, angle = (((nth * step) % 1) - 0.5 for step in (0.7549, 0.5698))
    turn = np.exp(1j * 1.2 * angle) * complex(lab[1], lab[2])
    lab[:] = np.clip(lab[0] + 44 * lightness, 25, 90), turn.real, turn.imag
    return (lab2rgb(lab[None, None])[0, 0] * 255).round().astype(np.uint8)


def _write_names(
    drawn: Picture,
    ids: Labels,
    segments: Labels,
    categories: Mapping[int, int],
    classes: Classes,
) -> Picture:
    """Write each object's class inside it, the largest objects first, where no name stands yet."""
    canvas = Image.fromarray(drawn)
    draw = ImageDraw.Draw(canvas)
    size = max(10, round(max(drawn.shape) / 38))
    areas = np.bincount(segments.ravel(), minlength=len(ids))
    taken: list[tuple[float, float, float, float]] = []
    for i in np.argsort(-areas):
        category = categories.get(int(ids[i]))
        if category is None:
            continue
        name = classes.names[category]
        thing = name in classes.things
        font = _font(size, bold=thing)
        center = _inner_point(segments == i)
        edge = max(1, size // 9)
        box = draw.textbbox(center, name, font, anchor="mm", stroke_width=edge)
        # Names near the picture's edge move inwards.
        dx = max(0, -box[0]) - max(0, box[2] - drawn.shape[1])
        dy = max(0, -box[1]) - max(0, box[3] - drawn.shape[0])
        box = (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy)
        if any(_overlap(box, other) for other in taken):
            continue
        taken.append(box)
        draw.text(
            (center[0] + dx, center[1] + dy),
            name,
            "white" if thing else "#e8e8e8",
            font,
            anchor="mm",
            stroke_width=edge,
            stroke_fill="#1a1a1a",
        )
    return np.asarray(canvas)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _inner_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The point (x, y) of a mask that is farthest from its border, the picture's edge included."""
    padded = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)


def _boundary(labels: Labels, width: int) -> NDArray[np.bool_]:
    """Pixels of the lines between differently labelled pixels, centred if the width is even."""
    lines = np.zeros(labels.shape, np.uint8)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return cv2.dilate(lines, np.ones((width, width), np.uint8)) > 0


def _neighbors(labels: Labels, number: int) -> list[NDArray[np.integer[Any]]]:
    """Labels that touch each of the labels 0 … number - 1 at a side of a pixel."""
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    pairs = np.concatenate([np.stack([a[a != b], b[a != b]], axis=1) for a, b in sides])
    pairs = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    keys = np.unique(pairs[:, 0] * number + pairs[:, 1])
    return np.split(keys % number, np.searchsorted(keys, np.arange(1, number) * number))


def _check_same_size(image: Picture, labels: Labels) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected a uint8 RGB picture (H, W, 3), got {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(
            f"expected labels of the picture's size {image.shape[:2]}, got {labels.shape}"
        )


@lru_cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    wanted = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(wanted), size)
