"""Distinct colors for classes that come without a palette, and palettes by name."""

from functools import lru_cache

import numpy as np
from matplotlib import color_sequences
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from .arrays import RGBImage


@lru_cache
def distinct_colors(number: int) -> RGBImage:
    """A fixed sequence of clearly different colors of medium lightness and chroma, ``(number, 3)``.

    Each color is the one on an RGB grid that is farthest, in Lab space, from the colors before it.
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
    colors.flags.writeable = False  # cached, so shared by all callers
    return colors


def named_colors(name: str) -> RGBImage:
    """Colors of one of matplotlib's color sequences, without grays, which mean void, ``(N, 3)``.

    ``'okabe_ito'`` (from matplotlib 3.11 on), ``'petroff6'``, ``'petroff8'`` and ``'petroff10'``
    (from 3.10 on) are made for every kind of color vision; ``'tab10'`` is not.

    Raises:
        ValueError: This matplotlib has no such sequence.
    """
    if name not in color_sequences:
        raise ValueError(
            f"expected a palette of matplotlib, {', '.join(color_sequences)}, got {name!r}"
        )
    colors = np.array([to_rgb(color) for color in color_sequences[name]])
    lab = rgb2lab(colors[None])[0]
    return (255 * colors[np.hypot(lab[:, 1], lab[:, 2]) > 10]).round().astype(np.uint8)
