"""Colours: of lines and errors, of many things at once, and of the objects of one class."""

from functools import lru_cache

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from .arrays import Picture

BOUNDARY_COLOR = (255, 225, 25)
"""Of the boundaries of clusters: rare in photographs, and bright for every kind of vision."""

ERROR_COLOR = (220, 20, 30)
"""Of undersegmentation, on a pale picture: dark enough to be told from it without its hue."""


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


def shade(color: Picture, nth: int) -> Picture:
    """Relative of a colour: lighter or darker and a little off in hue, another one for each nth.

    Args:
        color: RGB, ``(3,)``.
        nth: 0 for the colour itself.
    """
    if nth == 0:
        return color
    lab = rgb2lab(color[None, None] / 255.0)[0, 0]
    # Two sequences that fill an interval evenly, whatever the number of objects.
    lightness, angle = (((nth * step) % 1) - 0.5 for step in (0.7549, 0.5698))
    turn = np.exp(1j * 1.2 * angle) * complex(lab[1], lab[2])
    lab[:] = np.clip(lab[0] + 44 * lightness, 25, 90), turn.real, turn.imag
    return (lab2rgb(lab[None, None])[0, 0] * 255).round().astype(np.uint8)
