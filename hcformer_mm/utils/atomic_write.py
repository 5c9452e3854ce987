"""Atomic writing: a file is written as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file, or create it, only once its new content is complete.

    A process that is killed, or a full disk, leaves the old file as it was. A power failure may
    not: the content is not forced to the disk before the name is changed.

    Args:
        path: The file; its folder is created if necessary.

    Yields:
        A temporary path to write to, in the same folder. It is hidden and has a suffix of its own,
        so that nobody takes what a killed process left for a result.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        unfinished.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, str(unfinished)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        if os.path.lexists(unfinished):  # False for a name that is too long
            unfinished.unlink()


def temporary(path: Path) -> Path:
    """Path to which the content of a file is written before it replaces the file."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def check_different(source: str | Path, target: str | Path) -> None:
    """Raise a ValueError if a file would be overwritten by what is made of it."""
    if Path(source).resolve() == Path(target).resolve():
        raise InputError(f"expected another file to write to than {source}")
