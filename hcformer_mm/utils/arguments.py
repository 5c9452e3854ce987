"""Numbers on the command line, refused if they are out of their range."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

N = TypeVar("N", int, float)


def number(kind: type[N], least: N, most: N | None = None) -> Callable[[str], N]:
    """Return a type of argparse's options.

    Args:
        kind: ``int`` or ``float``.
        least: The smallest number that is accepted.
        most: The largest; None accepts any.
    """
    what = f"{'an integer' if kind is int else 'a number'} from {least} "
    what += "on" if most is None else f"to {most}"

    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        # Comparisons with NaN are false.
        if value is None or not least <= value <= (value if most is None else most):
            raise ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse
