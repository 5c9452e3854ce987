"""The error of input that a check refused, and parts of its message."""

from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input is wrong, and the message says all: tools print it without a traceback."""

    def __str__(self) -> str:
        # PyTorch puts the traceback before the message of an error in a data worker.
        return super().__str__().rpartition("InputError: ")[2].strip()


def some(names: Iterable[Any], limit: int = 4) -> str:
    """List the first ``limit`` names and count the others, for an error message."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return f"{', '.join(listed[:limit]) or 'nothing'}{more}"


def cut(value: Any, length: int) -> str:
    """A value as text of a message, shortened."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}…"


def reason(error: Exception) -> str:
    """What an error says, or its kind if it says nothing."""
    return str(error) or type(error).__name__
