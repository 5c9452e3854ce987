"""JSON that every reader accepts: null in place of NaN and infinities, which JSON does not have."""

import json
from typing import Any, TextIO

from mmengine.fileio import register_handler
from mmengine.fileio.handlers import JsonHandler


def dumps(value: Any, **options: Any) -> str:
    """Return a value as JSON, with null in place of numbers that are not finite.

    Args:
        value: What ``json.dumps`` accepts.
        options: Options of ``json.dumps``.
    """
    return _with_nulls(json.dumps(value, **options), options)


def _with_nulls(text: str, options: dict[str, Any]) -> str:
    if "NaN" not in text and "Infinity" not in text:
        return text
    return json.dumps(json.loads(text, parse_constant=lambda _: None), **options)


class StrictJsonHandler(JsonHandler):
    """MMEngine's writer of JSON, which writes by the rule of :func:`dumps`."""

    def dump_to_fileobj(self, obj: Any, file: TextIO, **kwargs: Any) -> None:
        """Write a value to a file."""
        file.write(self.dump_to_str(obj, **kwargs))

    def dump_to_str(self, obj: Any, **kwargs: Any) -> str:
        """Return a value as JSON."""
        return _with_nulls(super().dump_to_str(obj, **kwargs), kwargs)


def write_strict_logs() -> None:
    """Let MMEngine write strict JSON in this process: ``scalars.json`` and the scores of a test."""
    register_handler("json")(StrictJsonHandler)
