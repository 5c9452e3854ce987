"""Distinct colors for classes that come without a palette."""

from functools import lru_cache

import numpy as np
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
