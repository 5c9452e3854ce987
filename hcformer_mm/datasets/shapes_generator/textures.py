"""Surfaces of the stuff classes and fillings of things.

Every texture is a function ``(rng, x, y) -> pattern`` of pixel coordinates, with values in [-1, 1]
from dark to light.
"""

from collections.abc import Callable

import numpy as np

from .exact import direction, integer, uniform, value_noise, wave

Texture = Callable[[np.random.RandomState, np.ndarray, np.ndarray], np.ndarray]


def grass(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Upright strokes, bent a little by the wind."""
    x = x + uniform(rng, -0.3, 0.3) * y + 5.0 * value_noise(rng, x / 60.0, y / 60.0)
    blade = uniform(rng, 3.0, 4.5)
    strokes = value_noise(rng, x / blade, y / (6.0 * blade))
    return np.clip(1.7 * strokes, -1.0, 1.0)


def water(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Long level waves whose crests swing up and down."""
    period = uniform(rng, 11.0, 17.0)
    swing = uniform(rng, 0.35, 0.6)
    height = y / period + swing * value_noise(rng, x / 28.0, y / 40.0)
    height = height + uniform(rng, -0.15, 0.15) * x / period
    return wave(height)


def brick(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Courses of bricks of different shades between dark joints."""
    slope = uniform(rng, -0.1, 0.1)
    x, y = x - slope * y, y + slope * x
    course = uniform(rng, 14.0, 20.0)
    length = uniform(rng, 1.7, 2.2) * course
    y = y / course
    row = np.floor(y)
    x = x / length + 0.5 * (row - 2.0 * np.floor(row / 2.0))
    column = np.floor(x)
    shades = rng.random_sample((16, 16))
    shade = shades[row.astype(np.int64) % 16, column.astype(np.int64) % 16]
    joint = ((y - row) * course < 2.5) | ((x - column) * length < 2.5)
    return np.where(joint, -1.0, 0.9 * shade)


def sand(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light ground sprinkled with dark grains."""
    grain = uniform(rng, 2.6, 3.8)
    fine = value_noise(rng, x / grain, y / grain)
    return np.where(fine < -0.38, -1.0, 0.35 * fine + 0.35)


STUFF_TEXTURES: dict[str, Texture] = {
    "grass": grass,
    "water": water,
    "brick": brick,
    "sand": sand,
}
"""Stuff classes, in the order of their labels."""


def plain(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """One shade."""
    return np.zeros(np.broadcast(x, y).shape)


def gradient(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """From dark to light across the surface."""
    a, b = direction(rng)
    return np.clip((a * x + b * y) / 50.0, -1.0, 1.0)


def stripes(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Straight stripes of any direction."""
    a, b = direction(rng)
    return np.where(wave((a * x + b * y) / uniform(rng, 10.0, 24.0)) < 0.0, -1.0, 1.0)


def checks(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A chessboard of any direction."""
    a, b = direction(rng)
    size = uniform(rng, 9.0, 18.0)
    parity = np.floor((a * x + b * y) / size) + np.floor((a * y - b * x) / size)
    return np.where(parity - 2.0 * np.floor(parity / 2.0) == 0.0, -1.0, 1.0)


def dots(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Round dots on a square lattice of any direction."""
    a, b = direction(rng)
    pitch = uniform(rng, 11.0, 20.0)
    x, y = (a * x + b * y) / pitch, (a * y - b * x) / pitch
    x, y = x - np.floor(x) - 0.5, y - np.floor(y) - 0.5
    return np.where(x * x + y * y < 0.09, -1.0, 1.0)


def blotches(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cloudy stains."""
    size = float(integer(rng, 10, 24))
    return np.clip(1.5 * value_noise(rng, x / size, y / size), -1.0, 1.0)


FILLINGS: tuple[Texture, ...] = (dots, checks, stripes, plain, blotches, gradient)
"""Fillings of things, in the order of the thing classes that prefer them."""
