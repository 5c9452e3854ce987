"""RunFolder: results of a prediction that can be stopped and resumed, one JSON line an image."""

import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from ..utils.atomic_write import replacing
from ..utils.errors import InputError, cut
from ..utils.strict_json import dumps
from .result_writer import FILES, Record, ResultWriter

# Every line begins with the number of its image and says by its next key whether it failed.
_HEAD = re.compile(rb'\{"number": (\d+), "(\w+)": ')


class _Line(NamedTuple):
    file: Path
    offset: int
    failed: bool


class RunFolder:
    """Lines of results in a folder, which processes append and one of them merges in the end.

    ``settings.json`` says of which run they are. A process appends to ``results.<rank>.jsonl``;
    :meth:`merge` turns these files into ``results.jsonl``, ordered by image, and COCO's files. What
    a killed process leaves of a line does not count.

    Args:
        path: The folder.
        rank: Number of this process.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path
        self._settings = path / "settings.json"
        self._merged = path / "results.jsonl"
        self._own = path / f"results.{rank}.jsonl"
        self._lock = FileLock(path / ".lock")

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        """Let others claim the folder."""
        if self._lock.is_locked:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def claim(self, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Begin a run, or go on with one of the same settings; one process does it for all.

        Args:
            settings: What the results depend on, by name.
            overwrite: Whether to remove the results of another run first, except for PNG files,
                which are replaced image by image.

        Raises:
            ValueError: The folder has results of other settings, or another run writes to it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"expected a folder to which no other run writes, got {self.path}; wait for that "
                "run, or name another folder"
            ) from None
        if overwrite:
            for file in (*self._files(), *(self.path / name for name in FILES)):
                file.unlink(missing_ok=True)
        if self._files():
            self._compare(settings)
        with replacing(self._settings) as file:
            file.write_text(dumps(settings, indent=2) + "\n")
        for file in self._parts():
            _drop_half_a_line(file)

    def done(self) -> frozenset[int]:
        """Numbers of the images that have results; those that failed are to be tried again."""
        return frozenset(number for number, line in self._lines().items() if not line.failed)

    def append(self, number: int, record: Record) -> None:
        """Append the results of an image."""
        with self._own.open("ab") as file:
            file.write(f"{dumps(dict(number=number) | record)}\n".encode())

    def merge(self, writer: ResultWriter) -> tuple[int, int]:
        """Put all lines in order and write COCO's files, unless that is done.

        Args:
            writer: It collects the records.

        Returns:
            Numbers of images with results, and of those that failed.
        """
        lines = self._lines()
        parts = self._parts()
        if parts or not lines:
            with ExitStack() as stack:
                merged = stack.enter_context(replacing(self._merged)).open("wb")
                stack.enter_context(merged)
                stack.enter_context(writer)
                files = {file: stack.enter_context(file.open("rb")) for file in self._files()}
                for _, line in sorted(lines.items()):
                    files[line.file].seek(line.offset)
                    content = files[line.file].readline()
                    merged.write(content)
                    record = json.loads(content)
                    del record["number"]
                    writer.collect(record)
            for file in parts:
                file.unlink()
        failed = sum(line.failed for line in lines.values())
        return len(lines) - failed, failed

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("results.*jsonl"))

    def _parts(self) -> list[Path]:
        return [file for file in self._files() if file != self._merged]

    def _lines(self) -> dict[int, _Line]:
        """The line of each image: its result, if there is one, however often it failed before."""
        found: dict[int, _Line] = {}
        for path in reversed(self._files()):  # the merged one first, which is older
            with path.open("rb") as file:
                offset = 0
                for content in file:
                    if not content.endswith(b"\n"):
                        break  # another process is writing it
                    head = _HEAD.match(content)
                    if head is None:
                        raise InputError(
                            f"expected a result on each line of {path}, got {cut(content, 60)}; "
                            "give --overwrite to start anew"
                        )
                    line = _Line(path, offset, failed=head[2] == b"failed")
                    number, offset = int(head[1]), offset + len(content)
                    if number not in found or found[number].failed:
                        found[number] = line
        return found

    def _compare(self, settings: Mapping[str, Any]) -> None:
        """Raise a ValueError that names the settings which differ from those of the folder."""
        try:
            before = json.loads(self._settings.read_text())
        except (OSError, ValueError):
            before = {}
        now = json.loads(dumps(settings))
        if other := [
            f"{name} ({before.get(name)} there, {now.get(name)} here)"
            for name in now | before
            if before.get(name) != now.get(name)
        ]:
            raise InputError(
                f"expected a new folder or that of a run with the same settings, got {self.path} "
                f"with other {', '.join(other)}; name another folder, or give --overwrite to start "
                "anew"
            )


def _drop_half_a_line(path: Path) -> None:
    with path.open("rb+") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        file.truncate(whole)
