"""Random numbers and smooth functions that give the same bits on every machine.

IEEE 754 fixes the result of ``+ - * /``, comparisons and rounding to the last bit, but not of
``sin``, ``exp`` or a matrix product. The Shapes renderer is therefore built only from the former,
applied element by element, and every random number comes from ``RandomState.random_sample``, whose
stream NumPy has frozen. Its outputs are bit-identical wherever NumPy runs.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def uniform(rng: np.random.RandomState, low: float, high: float) -> float:
    """A number drawn uniformly from ``[low, high)``."""
    return low + (high - low) * float(rng.random_sample())


def integer(rng: np.random.RandomState, low: int, high: int) -> int:
    """An integer drawn uniformly from ``low, …, high``, both included."""
    return low + int(rng.random_sample() * (high - low + 1))


def choice(rng: np.random.RandomState, options: Sequence[T]) -> T:
    """One of ``options``, drawn uniformly."""
    return options[integer(rng, 0, len(options) - 1)]


def shuffled(rng: np.random.RandomState, items: Sequence[T]) -> list[T]:
    """The items in random order (Fisher-Yates)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = integer(rng, 0, last)
        result[last], result[other] = result[other], result[last]
    return result


def direction(rng: np.random.RandomState) -> tuple[float, float]:
    """A random unit vector ``(cosine, sine)``.

    It comes from the rational parametrisation of the circle, which needs no trigonometry. Every
    angle is reached; the density varies by a factor of two around the circle.
    """
    t = uniform(rng, -1.0, 1.0)
    cosine, sine = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
    return (cosine, sine) if rng.random_sample() < 0.5 else (-cosine, -sine)


def wave(phase: np.ndarray) -> np.ndarray:
    """A sine-like curve of period 1 and range [-1, 1], made of parabolas."""
    fraction = phase - np.floor(phase)
    rest = np.abs(fraction - 0.5)
    return np.where(fraction < 0.5, 1.0, -1.0) * (16.0 * rest * (0.5 - rest))


def value_noise(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise in [-1, 1]: random values on the integer lattice, blended by a smoothstep.

    Args:
        rng (np.random.RandomState): Source of the lattice's values.
        x (np.ndarray): Abscissae in lattice cells, of any shape.
        y (np.ndarray): Ordinates in lattice cells, of the same shape (or broadcastable to it).

    Returns:
        np.ndarray: The noise at these points.
    """
    x, y = x - np.floor(x.min()), y - np.floor(y.min())
    column, row = x.astype(np.int64), y.astype(np.int64)
    columns = int(column.max()) + 2
    lattice = 2.0 * rng.random_sample((int(row.max()) + 2) * columns) - 1.0
    corner = row * columns + column
    x, y = x - column, y - row
    x, y = x * x * (3.0 - 2.0 * x), y * y * (3.0 - 2.0 * y)
    upper, lower = lattice.take(corner), lattice.take(corner + columns)
    upper = upper + (lattice.take(corner + 1) - upper) * x
    lower = lower + (lattice.take(corner + columns + 1) - lower) * x
    return upper + (lower - upper) * y


def pixel_grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Centers of the pixels as two float64 arrays ``x`` and ``y`` of shape (height, width)."""
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5
