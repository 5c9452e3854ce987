"""Numbers on the command line, refused if they are out of their range."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from math import inf
from typing import TypeVar

N = TypeVar("N", int, float)


def number(kind: type[N], least: float, most: float = inf) -> Callable[[str], N]:
    """Return a type of argparse's options.

    Args:
        kind: ``int`` or ``float``.
        least: The smallest number that is accepted.
        most: The largest.
    """
    noun = "an integer" if kind is int else "a number"
    what = f"{noun} from {least} " + ("on" if most == inf else f"to {most}")

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        # Comparisons with NaN are false.
        if value is None or not least <= value <= most:
            raise ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse
