"""Arguments of command lines: numbers of a range, and overrides of a config."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

from mmengine.config import DictAction

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


class _Overrides(DictAction):
    """MMEngine's action, which fails to unpack words that have no value."""

    def __call__(self, parser: ArgumentParser, namespace: Any, values: Any, *name: Any) -> None:
        if words := [word for word in values if "=" not in word]:
            parser.error(f"argument {self.option_strings[0]}: expected key=value, got {words[0]!r}")
        super().__call__(parser, namespace, values, *name)


def add_cfg_options(parser: ArgumentParser) -> None:
    """Add ``--cfg-options`` of OpenMMLab's tools."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_Overrides,
        help='override settings of the config, as key=value; lists as key="[a,b]" or key=a,b',
    )
