"""Figures for slides and papers: drawings of segments, enlarged, with a legend and a scale bar."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..structures.arrays import RGBImage
from ..structures.palette import named_colors
from ..structures.panoptic import Classes, Panoptic
from .arrays import check_same_size, panel_size, resize_image, resize_map
from .fonts import font, fonts_for
from .panels import INK
from .panoptic import MODES, draw_panoptic


@dataclass(frozen=True)
class FigureStyle:
    """How a prediction is drawn; by default as by :func:`~.panoptic.draw_panoptic`.

    Attributes:
        mode: One of :data:`~.panoptic.MODES`: ``'gray'``, ``'fill'`` or ``'contours'``.
        palette: Name of a color sequence of matplotlib, see
            :func:`~hcformer_mm.structures.palette.named_colors`; None for the colors of the
            dataset. Class k has color k, counted around, and all its objects have the same.
        side: Images whose longer side has fewer pixels are enlarged to about as many, by an
            integer; None enlarges none.
        names: Whether segments are named.
        legend: Whether the colors of the classes, and the numbers of objects, stand below.
        scale_bar: Pixels of the image per unit of length, and the name of the unit, such as
            ``(4.0, 'µm')``, for a scale bar below; None for no bar.

    Raises:
        ValueError: There is no such mode or palette, or a number is not positive.
    """

    mode: str = "gray"
    palette: str | None = None
    side: int | None = None
    names: bool = True
    legend: bool = False
    scale_bar: tuple[float, str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"expected a mode among {', '.join(MODES)}, got {self.mode!r}")
        if self.palette is not None:
            named_colors(self.palette)
        if self.side is not None and self.side < 1:
            raise ValueError(f"expected a side of 1 pixel or more, got {self.side}")
        if self.scale_bar is not None and not 0 < self.scale_bar[0] < math.inf:
            raise ValueError(f"expected pixels per unit above 0, got {self.scale_bar[0]}")


PLAIN = FigureStyle()
"""The style without any choice."""


def draw_figure(
    image: RGBImage,
    panoptic: Panoptic,
    classes: Classes,
    style: FigureStyle = PLAIN,
    *,
    scores: bool = False,
) -> RGBImage:
    """Draw segments over their image in a style.

    Args:
        image: The image, ``(H, W, 3)``.
        panoptic: Segments of the same size.
        classes: Names and colors.
        style: How to draw.
        scores: Whether the score of a segment, if it is known, follows its name.

    Returns:
        RGB uint8, ``(H, W, 3)``, larger by the enlargement, and by a white margin below for a
        legend or a scale bar.

    Raises:
        ValueError: ``image`` is not an RGB image, the segments differ from it in size, or one has
            a class that ``classes`` lacks.
    """
    check_same_size(image, panoptic.segments)
    if style.palette is not None:
        colors = np.resize(named_colors(style.palette), (len(classes.names), 3))
        classes = replace(classes, palette=colors.tolist())
    size = panel_size(image.shape, target=max(*image.shape[:2], style.side or 0))
    drawn = draw_panoptic(
        resize_image(image, size),
        Panoptic(resize_map(panoptic.segments, size), panoptic.categories, scores=panoptic.scores),
        classes,
        mode=style.mode,
        shades=style.palette is None,
        names=style.names,
        scores=scores,
    )
    height = max(11, round(max(size) / 40))
    keys: list[_Key] = []
    if style.scale_bar is not None:
        per_unit, unit = style.scale_bar
        keys.append(_scale_bar(per_unit * size[1] / image.shape[1], unit, size[1], height))
    if style.legend:
        keys.extend(_legend(panoptic, classes, height))
    return _with_keys(drawn, keys, height) if keys else drawn


class _Key(NamedTuple):
    """A colored rectangle, (width, height) in pixels, and the text beside it."""

    color: tuple[int, ...]
    size: tuple[int, int]
    text: str
    style: ImageFont.FreeTypeFont


def _scale_bar(per_unit: float, unit: str, width: int, height: int) -> _Key:
    """A bar of 1, 2 or 5 times a power of ten, at most a quarter of ``width`` pixels long."""
    limit = width / 4 / per_unit
    power = 10.0 ** math.floor(math.log10(limit))
    # One half, since log10 rounds limits just below a power up to it.
    length = max(step * power for step in (0.5, 1, 2, 5) if step * power <= limit)
    pixels = max(1, round(length * per_unit))
    return _Key((0, 0, 0), (pixels, max(2, height // 4)), f"{length:g} {unit}", font(height))


def _legend(panoptic: Panoptic, classes: Classes, height: int) -> Iterator[_Key]:
    """Keys of the classes in an image, in their order, with the numbers of their objects."""
    fonts, colors = fonts_for(tuple(classes.names), classes.font), classes.colors()
    visible = np.unique(panoptic.segments).tolist()
    numbers = Counter(panoptic.categories[i] for i in visible if i in panoptic.categories)
    for category, number in sorted(numbers.items()):
        name = classes.names[category]
        text = " ".join(name.split()) + f" ({number})" * classes.is_object(category)
        style = font(height, file=fonts[name])
        yield _Key(tuple(colors[category].tolist()), (height, height), text, style)


def _with_keys(drawn: RGBImage, keys: Sequence[_Key], height: int) -> RGBImage:
    """Write keys below a drawing, in as many lines as its width needs."""
    line, width = round(1.6 * height), drawn.shape[1]
    places, left, top = [], 0, len(drawn) + line // 3
    for key in keys:
        length = key.size[0] + math.ceil(key.style.getlength(key.text)) + 2 * height
        if left and left + length > drawn.shape[1]:
            left, top = 0, top + line
        places.append((left, top))
        left += length
        width = max(width, left)
    canvas = Image.new("RGB", (width, top + line), "white")
    canvas.paste(Image.fromarray(drawn))
    draw = ImageDraw.Draw(canvas)
    for key, (left, top) in zip(keys, places, strict=True):
        left, middle = left + height // 3, top + line // 2
        first = middle - key.size[1] // 2
        # The end of a rectangle of Pillow is inside.
        draw.rectangle(
            (left, first, left + key.size[0] - 1, first + key.size[1] - 1), fill=key.color
        )
        place = (left + key.size[0] + height // 2, middle)
        draw.text(place, key.text, INK, key.style, anchor="lm")
    return np.asarray(canvas)
