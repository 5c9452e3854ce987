"""Outlines of the thing classes, in the unit disc.

``FIGURES[name](rng, thin)`` draws random proportions and returns a predicate on points ``(u, v)``,
true inside the figure.
"""

from collections.abc import Callable

import numpy as np

from .exact import uniform

Predicate = Callable[[np.ndarray, np.ndarray], np.ndarray]

# (sine, cosine) of 0°, 72°, 144°, 216° and 288°, as decimals: trigonometry is not bit-exact.
_PENTAGON = (
    (0.0, 1.0),
    (0.9510565162951535, 0.30901699437494745),
    (0.5877852522924731, -0.8090169943749475),
    (-0.5877852522924731, -0.8090169943749475),
    (-0.9510565162951535, 0.30901699437494745),
)
_HALF_SQRT3 = 0.8660254037844386


def disc(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A disc; an ellipse if thin."""
    b = uniform(rng, 0.28, 0.4) if thin else uniform(rng, 0.85, 1.0)
    return lambda u, v: u * u + (v * v) / (b * b) <= 1.0


def box(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A rectangle, up to a square; a bar if thin."""
    if thin:
        a, b = 0.98, uniform(rng, 0.12, 0.2)
    else:
        a = uniform(rng, 0.72, 0.84)
        b = uniform(rng, 0.5, 0.72)
    return lambda u, v: (np.abs(u) <= a) & (np.abs(v) <= b)


def triangle(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A triangle, up to the equilateral one; a spike if thin."""
    base = uniform(rng, 0.25, 0.36) if thin else uniform(rng, 0.8, 1.0)
    slope = base * _HALF_SQRT3 / 1.5
    return lambda u, v: (v >= -0.5) & (np.abs(u) <= (1.0 - v) * slope)


def star(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A five-pointed star; a slanted view of it if thin."""
    squash = uniform(rng, 0.45, 0.6) if thin else 1.0
    # The lines of a pentagram pass at cos 72° = 0.309 from its center; moved outwards they give a
    # plumper star, whose tips the unit circle trims.
    offset = uniform(rng, 0.31, 0.38)

    def predicate(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        v = v / squash
        # A point is in the star if it lies on the inner side of at least four of the five lines.
        inside = np.zeros(np.broadcast(u, v).shape, np.int64)
        for sine, cosine in _PENTAGON:
            inside += u * sine - v * cosine <= offset
        return (inside >= 4) & (u * u + v * v <= 1.0)

    return predicate


def cross(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A cross of two bars."""
    arm = uniform(rng, 0.12, 0.17) if thin else uniform(rng, 0.24, 0.34)

    def predicate(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        u, v = np.abs(u), np.abs(v)
        return (np.minimum(u, v) <= arm) & (np.maximum(u, v) <= 0.94)

    return predicate


def ring(rng: np.random.RandomState, thin: bool) -> Predicate:
    """A ring, with a hole that shows the ground."""
    hole = uniform(rng, 0.78, 0.84) if thin else uniform(rng, 0.45, 0.62)

    def predicate(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        square = u * u + v * v
        return (square <= 1.0) & (square >= hole * hole)

    return predicate


FIGURES: dict[str, Callable[[np.random.RandomState, bool], Predicate]] = {
    "disc": disc,
    "box": box,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
}
"""Thing classes, in the order of their labels."""
