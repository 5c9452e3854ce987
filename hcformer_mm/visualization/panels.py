"""Sheets: titled panels in rows and columns, with scores in the bottom margin."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..structures.arrays import RGBImage
from .fonts import font

INK, FAINT = "#1a1a1a", "#707070"

Score = tuple[str, str]
"""Name and value as printed."""


@dataclass(frozen=True)
class Panel:
    """One image of a sheet, with a title and, if there is room, a fainter note after it."""

    image: RGBImage
    title: str
    note: str = ""


def text_height(width: int) -> int:
    """Height of titles over panels of ``width`` pixels, legible in a paper's column."""
    return max(11, round(width / 24))


def sheet(
    rows: Sequence[Sequence[Panel | None]], *, margin: Sequence[Sequence[Score]] = ()
) -> RGBImage:
    """Arrange panels in rows on white, each under its title.

    Args:
        rows: Panels of one size; rows may differ in length, and None leaves a place empty.
        margin: For each column, the scores to print side by side under it.

    Returns:
        The sheet, RGB uint8 ``(H, W, 3)``.

    Raises:
        ValueError: There is no panel, or the panels differ in size.
    """
    panels = [panel for row in rows for panel in row if panel is not None]
    sizes = {panel.image.shape[:2] for panel in panels}
    if len(sizes) != 1:
        raise ValueError(f"expected panels of one size, got {sorted(sizes) or 'no panel'}")
    height, width = sizes.pop()
    text = text_height(width)
    gap, head = round(text * 0.8), round(text * 1.8)
    foot = round(text * 3.2) if any(margin) else gap
    columns = max(len(row) for row in rows)
    canvas = Image.new(
        "RGB", (columns * (width + gap) + gap, len(rows) * (height + head) + foot), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for i, row in enumerate(rows):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            left, top = gap + j * (width + gap), head + i * (height + head)
            canvas.paste(Image.fromarray(panel.image), (left, top))
            base = top - round(text * 0.5)
            draw.text((left, base), panel.title, INK, font(text, bold=True), anchor="ls")
            indent = draw.textlength(f"{panel.title}  ", font(text, bold=True))
            if indent + draw.textlength(panel.note, font(text)) <= width:
                place = (left + round(indent), base)
                draw.text(place, panel.note, FAINT, font(text), anchor="ls")
    bottom = len(rows) * (height + head)
    for j, scores in enumerate(margin):
        _write_scores(draw, (gap + j * (width + gap), bottom), width, scores)
    return np.asarray(canvas)


def _write_scores(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, scores: Sequence[Score]
) -> None:
    """Print scores under a column, each value under its name."""
    text = text_height(width)
    small = max(9, round(0.8 * text))
    left, top = place
    for name, value in scores:
        draw.text((left, top + round(1.3 * text)), name, FAINT, font(small), anchor="ls")
        draw.text((left, top + round(2.6 * text)), value, INK, font(text, bold=True), anchor="ls")
        left += width // len(scores)
