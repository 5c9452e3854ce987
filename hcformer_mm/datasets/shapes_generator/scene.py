"""A scene of the Shapes dataset: an image and its segments."""

from dataclasses import dataclass

import numpy as np

from .exact import uniform
from .figures import FIGURES
from .layout import draw_layout
from .painting import paint
from .textures import STUFF_TEXTURES

GENERATOR_VERSION = "1.1"
"""Changes whenever the same seed would give a different scene."""

MIN_SIZE = 64


@dataclass(frozen=True)
class Segment:
    """One thing, or all pixels of one stuff class.

    Attributes:
        label: Index of its class: things first, then stuff.
        is_thing: Whether it is a thing.
        mask: Visible pixels, ``(H, W)`` bool; never empty.
    """

    label: int
    is_thing: bool
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image and its segments.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB.
        segments: Stuff by label, then things from bottom to top. Their masks partition the image.
    """

    image: np.ndarray
    segments: list[Segment]


def render_scene(seed: tuple[int, ...], *, size: tuple[int, int] = (240, 320)) -> Scene:
    """Render the scene of a seed, bit-identical on every machine.

    Args:
        seed: Integers in [0, 2**32), such as (seed of the dataset, split, index).
        size: Mean height and width in pixels, from which a scene differs by up to 8 %.

    Raises:
        ValueError: A side is shorter than 64 pixels.
    """
    if min(size) < MIN_SIZE:
        raise ValueError(
            f"expected size (height, width) of at least {MIN_SIZE} pixels each, got {tuple(size)}"
        )
    rng = np.random.RandomState(list(seed))
    height, width = (int(side * uniform(rng, 0.92, 1.08)) for side in size)
    layout = draw_layout(rng, height, width)
    ground = layout.owner < 0
    segments = []
    for label in range(len(STUFF_TEXTURES)):
        mask = ground & (layout.ground == label)
        if mask.any():
            segments.append(Segment(len(FIGURES) + label, False, mask))
    for index, thing in enumerate(layout.things):
        segments.append(Segment(thing.label, True, layout.owner == index))
    return Scene(paint(rng, layout), segments)
