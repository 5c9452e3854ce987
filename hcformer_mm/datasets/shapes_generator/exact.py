"""Random numbers and smooth functions that are bit-identical on every machine.

IEEE 754 fixes every bit of ``+ - * /``, comparisons and rounding, but not of ``sin``, ``exp`` or a
matrix product. The Shapes renderer therefore uses only the former, elementwise, and draws every
random number by ``RandomState.random_sample``, whose stream NumPy has frozen.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def uniform(rng: np.random.RandomState, low: float, high: float) -> float:
    """Random number, uniform in ``[low, high)``."""
    return low + (high - low) * float(rng.random_sample())


def integer(rng: np.random.RandomState, low: int, high: int) -> int:
    """Random integer, uniform in ``low, …, high``, both included."""
    return low + int(rng.random_sample() * (high - low + 1))


def choice(rng: np.random.RandomState, options: Sequence[T]) -> T:
    """Random element of ``options``, uniform."""
    return options[integer(rng, 0, len(options) - 1)]


def shuffled(rng: np.random.RandomState, items: Sequence[T]) -> list[T]:
    """Items in random order (Fisher-Yates)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = integer(rng, 0, last)
        result[last], result[other] = result[other], result[last]
    return result


def direction(rng: np.random.RandomState) -> tuple[float, float]:
    """Random unit vector ``(cosine, sine)``.

    The rational parametrization of the circle needs no trigonometry. It reaches every angle; the
    density varies by a factor of two.
    """
    t = uniform(rng, -1.0, 1.0)
    cosine, sine = (1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
    return (cosine, sine) if rng.random_sample() < 0.5 else (-cosine, -sine)


def wave(phase: np.ndarray) -> np.ndarray:
    """Sine-like curve of period 1 and range [-1, 1], made of parabolas."""
    fraction = phase - np.floor(phase)
    rest = np.abs(fraction - 0.5)
    return np.where(fraction < 0.5, 1.0, -1.0) * (16.0 * rest * (0.5 - rest))


def value_noise(rng: np.random.RandomState, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth noise in [-1, 1] at points ``(x, y)``, given in lattice cells, of any shape.

    Random values on the integer lattice are blended by a smoothstep.
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
    """Pixel centers as float64 arrays ``x`` and ``y`` of shape ``(height, width)``."""
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5
