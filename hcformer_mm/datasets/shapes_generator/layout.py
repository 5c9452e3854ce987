"""Where everything of a scene is: the ground's regions, the things on it, and who hides whom."""

from dataclasses import dataclass

import numpy as np

from .exact import choice, direction, integer, pixel_grid, shuffled, uniform, value_noise
from .figures import FIGURES, Predicate
from .textures import STUFF_TEXTURES

THING_COUNTS = (2, 3, 3, 4, 4, 5, 5, 6, 7, 8)
"""How many things a scene shows; drawn uniformly from this list."""
TINY_SHARE = 0.08
"""Share of things that are smaller than 36 pixels (at an image height of 240)."""
THIN_SHARE = 0.08
"""Share of things that are bars, spikes and hoops instead of full figures."""
MIN_VISIBLE_SHARE = 0.45
"""A thing is not placed where it, or one below it, would keep less of its area than this."""
MIN_STUFF_SHARE = 0.02
"""A class of stuff that is in a scene covers at least this share of it."""

_REFERENCE_HEIGHT = 240.0
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Thing:
    """One figure, placed.

    Attributes:
        label (int): Index of its class among the things.
        mask (np.ndarray): Its outline (H, W), what hides it included.
        u (np.ndarray): Abscissae (H, W) of the pixels in the figure's own frame.
        v (np.ndarray): Ordinates (H, W) of the pixels in the figure's own frame.
        outline (Predicate): Which (u, v) are in the figure.
        area (float): Pixels that it would have if neither the frame nor another thing cut it.
    """

    label: int
    mask: np.ndarray
    u: np.ndarray
    v: np.ndarray
    outline: Predicate
    area: float


@dataclass(frozen=True)
class Layout:
    """The geometry of a scene.

    Attributes:
        ground (np.ndarray): Index (H, W) of the class of stuff at every pixel, also under things.
        things (list[Thing]): From the bottom to the top.
        owner (np.ndarray): Index (H, W) of the thing seen at every pixel; -1 where the ground is.
    """

    ground: np.ndarray
    things: list[Thing]
    owner: np.ndarray


def draw_layout(rng: np.random.RandomState, height: int, width: int) -> Layout:
    """Draw the regions of the ground and place the things.

    Args:
        rng (np.random.RandomState): Source of all randomness.
        height (int): Height of the scene in pixels.
        width (int): Width of the scene in pixels.

    Returns:
        Layout: At least two things; every class of stuff covers ``MIN_STUFF_SHARE`` of the scene.

    Raises:
        RuntimeError: If no layout was found, which happens only for sizes far from the usual.
    """
    x, y = pixel_grid(height, width)
    for _ in range(_MAX_ATTEMPTS):
        ground = _draw_ground(rng, x, y)
        if not _stuff_is_large_enough(ground, np.full(ground.shape, -1)):
            continue
        layout = _place_things(rng, x, y, ground)
        if len(layout.things) >= min(THING_COUNTS):
            return layout
    raise RuntimeError(
        f"expected room for at least {min(THING_COUNTS)} things in a scene of {height}x{width}, "
        f"found none in {_MAX_ATTEMPTS} attempts; ask for images of about 240x320"
    )


def _draw_ground(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two to four regions: the Voronoi cells of random seeds, seen through a wavy pane."""
    height, width = x.shape
    labels = shuffled(rng, range(len(STUFF_TEXTURES)))[: integer(rng, 2, len(STUFF_TEXTURES))]
    bend = 0.22 * min(height, width)
    cell = 0.4 * min(height, width)
    warped_x = x + bend * value_noise(rng, x / cell, y / cell)
    warped_y = y + bend * value_noise(rng, x / cell, y / cell)
    ground = np.zeros(x.shape, np.int64)
    nearest = np.full(x.shape, np.inf)
    for label in labels:
        dx, dy = warped_x - uniform(rng, 0.0, width), warped_y - uniform(rng, 0.0, height)
        distance = dx * dx + dy * dy
        closer = distance < nearest
        ground[closer], nearest[closer] = label, distance[closer]
    return ground


def _place_things(
    rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, ground: np.ndarray
) -> Layout:
    """Lay things one on top of the other, as many as are wanted or as find room."""
    wanted = choice(rng, THING_COUNTS)
    things: list[Thing] = []
    owner = np.full(ground.shape, -1, np.int64)
    for _ in range(6 * wanted):
        if len(things) == wanted:
            break
        thing = _draw_thing(rng, x, y, crowded=wanted > 5)
        candidate = np.where(thing.mask, len(things), owner)
        seen = np.bincount(candidate.ravel() + 1, minlength=len(things) + 2)[1:]
        wholes = [other.area for other in (*things, thing)]
        if (seen >= MIN_VISIBLE_SHARE * np.asarray(wholes)).all() and _stuff_is_large_enough(
            ground, candidate
        ):
            things.append(thing)
            owner = candidate
    return Layout(ground, things, owner)


def _draw_thing(
    rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, *, crowded: bool
) -> Thing:
    """A figure of random class, proportions, size, direction and place."""
    height, width = x.shape
    label = integer(rng, 0, len(FIGURES) - 1)
    kind = rng.random_sample()
    tiny, thin = kind < TINY_SHARE, TINY_SHARE <= kind < TINY_SHARE + THIN_SHARE
    outline = list(FIGURES.values())[label](rng, bool(thin))
    if tiny:
        diameter = uniform(rng, 22.0, 36.0)
    elif thin:
        diameter = uniform(rng, 100.0, 160.0)
    else:
        diameter = uniform(rng, 76.0, 120.0 if crowded else 150.0)
    diameter *= min(height, width) / _REFERENCE_HEIGHT
    margin = 0.1
    center_x = uniform(rng, margin * width, (1.0 - margin) * width)
    center_y = uniform(rng, margin * height, (1.0 - margin) * height)
    # Turn, foreshorten along the turned axis, turn again: a figure seen at a slant.
    slant, (cos_a, sin_a), (cos_b, sin_b) = uniform(rng, 1.0, 1.2), direction(rng), direction(rng)
    x, y = (x - center_x) / (0.5 * diameter), (y - center_y) / (0.5 * diameter)
    u, v = cos_a * x + sin_a * y, slant * (cos_a * y - sin_a * x)
    u, v = cos_b * u + sin_b * v, cos_b * v - sin_b * u
    area = _unit_area(outline) * 0.25 * diameter * diameter / slant
    return Thing(label, outline(u, v), u, v, outline, area)


def _unit_area(outline: Predicate) -> float:
    """Area of a figure in its own frame, measured on a grid of 64×64 points."""
    steps = 64
    step = 2.0 / steps
    points = (np.arange(steps) + 0.5) * step - 1.0
    return step * step * np.count_nonzero(outline(points[None, :], points[:, None]))


def _stuff_is_large_enough(ground: np.ndarray, owner: np.ndarray) -> bool:
    """Whether every class of the ground keeps ``MIN_STUFF_SHARE`` of the scene."""
    visible = np.bincount(ground[owner < 0], minlength=len(STUFF_TEXTURES))
    present = np.bincount(ground.ravel(), minlength=len(STUFF_TEXTURES)) > 0
    return bool((visible[present] >= MIN_STUFF_SHARE * ground.size).all())
