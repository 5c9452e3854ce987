"""Painting of a layout: colors, surfaces, shadows, light and camera noise."""

import colorsys

import numpy as np

from .exact import choice, direction, integer, pixel_grid, uniform, value_noise
from .figures import FIGURES
from .layout import SceneLayout, Thing
from .textures import FILLINGS, STUFF_TEXTURES, Texture

Color = tuple[float, float, float]

THING_HUE_BIAS = 0.6
"""Share of things in their class's hue; others have a random one. Color is a weak cue."""
THING_FILLING_BIAS = 0.9
"""Share of things with their class's filling; others have a random one. Only shape is decisive."""
STUFF_HUE_BIAS = 0.5
"""Share of stuff in its class's hue."""
MIN_CONTRAST = 0.3
"""RGB distance (channels in [0, 1]) of a thing's color from all earlier ones, where possible."""

_HUE_WIDTH = 0.06


def paint(rng: np.random.RandomState, layout: SceneLayout) -> np.ndarray:
    """Paint a layout as an image ``(H, W, 3)``, uint8, RGB."""
    x, y = pixel_grid(*layout.ground.shape)
    image = np.zeros((*layout.ground.shape, 3), np.float32)
    used: list[Color] = []
    for label, texture in enumerate(STUFF_TEXTURES.values()):
        region = layout.ground == label
        if region.any():
            color = _stuff_color(rng, label)
            used.append(color)
            depth = uniform(rng, 0.3, 0.5)
            image[region] = _shades(color, depth, texture(rng, x[region], y[region]))
    shadow_offset = (integer(rng, -7, 7), integer(rng, 2, 8))
    shadow_depth = uniform(rng, 0.0, 0.45)
    for thing in layout.things:
        _cast_shadow(image, thing.mask, shadow_offset, shadow_depth)
        color = _thing_color(rng, thing.label, used)
        used.append(color)
        _paint_thing(rng, image, thing, color, x, y)
    return _photograph(rng, image, x, y)


def _hue(rng: np.random.RandomState, label: int, count: int, bias: float) -> float:
    """Return the class's own hue with probability ``bias``, else a random one."""
    if rng.random_sample() < bias:
        return (label / count + uniform(rng, -_HUE_WIDTH, _HUE_WIDTH)) % 1.0
    return uniform(rng, 0.0, 1.0)


def _stuff_color(rng: np.random.RandomState, label: int) -> Color:
    """Muted color."""
    hue = _hue(rng, label, len(STUFF_TEXTURES), STUFF_HUE_BIAS)
    return colorsys.hsv_to_rgb(hue, uniform(rng, 0.1, 0.45), uniform(rng, 0.4, 0.8))


def _thing_color(rng: np.random.RandomState, label: int, used: list[Color]) -> Color:
    """Mostly vivid color that contrasts with the colors used before."""
    best, best_contrast = (0.0, 0.0, 0.0), -1.0
    for _ in range(10):
        hue = _hue(rng, label, len(FIGURES), THING_HUE_BIAS)
        color = colorsys.hsv_to_rgb(hue, uniform(rng, 0.25, 0.95), uniform(rng, 0.35, 1.0))
        contrast = min(_squared_distance(color, other) for other in used)
        if contrast > best_contrast:
            best, best_contrast = color, contrast
        if contrast >= MIN_CONTRAST * MIN_CONTRAST:
            break
    return best


def _filling(rng: np.random.RandomState, label: int) -> Texture:
    """Return the class's own filling with probability ``THING_FILLING_BIAS``, else a random one."""
    if rng.random_sample() < THING_FILLING_BIAS:
        return FILLINGS[label]
    return choice(rng, FILLINGS)


def _squared_distance(a: Color, b: Color) -> float:
    # Spelled out because sum() rounds floats differently from Python 3.12 on.
    red, green, blue = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return red * red + green * green + blue * blue


def _shades(color: Color, depth: float, pattern: np.ndarray) -> np.ndarray:
    """Shades ``(…, 3)`` of a color, times ``1 ± depth / 2`` where the pattern is ±1."""
    return np.asarray(color) * (1.0 + 0.5 * depth * pattern)[..., None]


def _cast_shadow(
    image: np.ndarray, mask: np.ndarray, offset: tuple[int, int], depth: float
) -> None:
    """Darken the image, in place, in the shadow of ``mask``."""
    dx, dy = offset
    height, width = mask.shape
    shadow = np.zeros_like(mask)
    left, right = max(dx, 0), width + min(dx, 0)
    shadow[dy:, left:right] = mask[: height - dy, left - dx : right - dx]
    image[shadow] *= 1.0 - depth


def _paint_thing(
    rng: np.random.RandomState,
    image: np.ndarray,
    thing: Thing,
    color: Color,
    x: np.ndarray,
    y: np.ndarray,
) -> None:
    """Paint, in place, a thing's surface, shading and (on some) rim."""
    mask = thing.mask
    pattern = _filling(rng, thing.label)(rng, x[mask], y[mask])
    surface = _shades(color, uniform(rng, 0.3, 0.6), pattern)
    u, v = thing.u[mask], thing.v[mask]
    a, b = direction(rng)
    surface = surface * (1.0 + uniform(rng, 0.0, 0.3) * (a * u + b * v))[:, None]
    if rng.random_sample() < 0.3:
        rim = ~thing.outline(1.12 * u, 1.12 * v)
        surface[rim] = surface[rim] * uniform(rng, 0.35, 0.7)
    image[mask] = surface


def _photograph(
    rng: np.random.RandomState, image: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Light the scene unevenly, blur it a little, add noise, and round to 8 bits."""
    height, width = x.shape
    a, b = direction(rng)
    ramp = a * (2.0 * x / width - 1.0) + b * (2.0 * y / height - 1.0)
    clouds = value_noise(rng, x / 110.0, y / 110.0)
    light = 1.0 + uniform(rng, 0.0, 0.3) * ramp + uniform(rng, 0.0, 0.25) * clouds
    light = (uniform(rng, 0.8, 1.15) * light).astype(np.float32)
    gains = np.asarray([uniform(rng, 0.85, 1.1) for _ in range(3)], np.float32)
    image = image * light[..., None] * gains
    blur = uniform(rng, 0.3, 1.0)
    image = image + blur * (_blurred(image) - image)
    noise = rng.random_sample(image.shape) + rng.random_sample(image.shape) - 1.0
    image = image + uniform(rng, 0.01, 0.12) * noise.astype(np.float32)
    return np.rint(255.0 * np.clip(image, 0.0, 1.0)).astype(np.uint8)


def _blurred(image: np.ndarray) -> np.ndarray:
    """Image ``(H, W, 3)`` under a 3×3 binomial filter."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]
