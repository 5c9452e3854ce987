"""Geometry of a scene: regions of the ground, things on it, and occlusion."""

from dataclasses import dataclass

import numpy as np

from .exact import choice, direction, integer, pixel_grid, shuffled, uniform, value_noise
from .figures import FIGURES, Predicate
from .textures import STUFF_TEXTURES

THING_COUNTS = (2, 3, 3, 4, 4, 5, 5, 6, 7, 8)
"""Numbers of things in a scene, drawn uniformly."""
TINY_SHARE = 0.08
"""Share of things smaller than 36 pixels, at an image height of 240."""
THIN_SHARE = 0.08
"""Share of things with thin figures, such as bars, spikes and hoops."""
MIN_VISIBLE_SHARE = 0.45
"""Minimum visible share of every thing's area."""
MIN_STUFF_SHARE = 0.02
"""Minimum share of the scene that each of its stuff classes covers."""

_REFERENCE_HEIGHT = 240.0
_MAX_ATTEMPTS = 1000


@dataclass(frozen=True)
class Thing:
    """One placed figure.

    Attributes:
        label: Index of its class among the things.
        mask: ``(H, W)`` bool, hidden parts included.
        u: Abscissae ``(H, W)`` of the pixels in the figure's own frame.
        v: Ordinates ``(H, W)`` of the pixels in the figure's own frame.
        outline: Predicate on ``(u, v)``.
        area: Pixels of the whole figure, uncropped and unoccluded.
    """

    label: int
    mask: np.ndarray
    u: np.ndarray
    v: np.ndarray
    outline: Predicate
    area: float


@dataclass(frozen=True)
class SceneLayout:
    """Geometry of a scene.

    Attributes:
        ground: ``(H, W)`` index of the stuff class of every pixel, also under things.
        things: Things from bottom to top.
        owner: ``(H, W)`` index of the visible thing; -1 for the ground.
    """

    ground: np.ndarray
    things: list[Thing]
    owner: np.ndarray


def draw_layout(rng: np.random.RandomState, height: int, width: int) -> SceneLayout:
    """Draw a random layout of ``height`` × ``width`` pixels, with at least two things.

    Raises:
        RuntimeError: No layout was found, which happens only far from the default size.
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
        f"found none in {_MAX_ATTEMPTS} attempts; choose a size of about 240x320"
    )


def _draw_ground(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Two to four regions: warped Voronoi cells of random seeds."""
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
) -> SceneLayout:
    """Place a random number of things on top of each other, or as many as fit."""
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
    return SceneLayout(ground, things, owner)


def _draw_thing(
    rng: np.random.RandomState, x: np.ndarray, y: np.ndarray, *, crowded: bool
) -> Thing:
    """Figure of random class, proportions, size, direction and place."""
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
    """Area of a figure in its own frame, on a grid of 64×64 points."""
    steps = 64
    step = 2.0 / steps
    points = (np.arange(steps) + 0.5) * step - 1.0
    return step * step * np.count_nonzero(outline(points[None, :], points[:, None]))


def _stuff_is_large_enough(ground: np.ndarray, owner: np.ndarray) -> bool:
    """Whether every class of the ground keeps ``MIN_STUFF_SHARE`` of the scene."""
    visible = np.bincount(ground[owner < 0], minlength=len(STUFF_TEXTURES))
    present = np.bincount(ground.ravel(), minlength=len(STUFF_TEXTURES)) > 0
    return bool((visible[present] >= MIN_STUFF_SHARE * ground.size).all())
