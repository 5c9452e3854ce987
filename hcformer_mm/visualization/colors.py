"""Colors: of lines and errors, of many things at once, and of the objects of one class."""

import numpy as np
from skimage.color import lab2rgb, rgb2lab

from ..structures.arrays import RGBImage

BOUNDARY_COLOR = (255, 225, 25)
"""Of the boundaries of clusters: rare in photographs, and bright for every kind of vision."""

ERROR_COLOR = (220, 20, 30)
"""Of undersegmentation, on a pale image: dark enough to be told from it without its hue."""


def shade(color: RGBImage, nth: int) -> RGBImage:
    """Relative of a color: lighter or darker and a little off in hue, another one for each nth.

    Args:
        color: RGB, ``(3,)``.
        nth: 0 for the color itself.
    """
    if nth == 0:
        return color
    lab = rgb2lab(color[None, None] / 255.0)[0, 0]
    # Two sequences that fill an interval evenly, whatever the number of objects.
    lightness, angle = (((nth * step) % 1) - 0.5 for step in (0.7549, 0.5698))
    turn = np.exp(1j * 1.2 * angle) * complex(lab[1], lab[2])
    lab[:] = np.clip(lab[0] + 44 * lightness, 25, 90), turn.real, turn.imag
    return (lab2rgb(lab[None, None])[0, 0] * 255).round().astype(np.uint8)
