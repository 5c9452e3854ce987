"""Values of images, found by the images' paths."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
_Entry: TypeAlias = tuple[tuple[str, ...], PurePath, T]


class PathIndex(Generic[T]):
    """Finds values by paths that may begin in other folders than the known ones.

    A path finds the entry of its name; among several of that name, which lie in several folders,
    the one that shares the most folders with it, counted from the file upwards.

    Args:
        entries: Path and value of each image.
        source: File or folder that lists them, for messages.
        name: Part of a path that must be the same; by default the file name with its suffix.

    Raises:
        ValueError: A path is listed twice.
    """

    def __init__(
        self,
        entries: Iterable[tuple[str | PurePath, T]],
        source: str | PurePath,
        name: Callable[[PurePath], str] = lambda path: path.name,
    ) -> None:
        self._source, self._name = source, name
        listed: defaultdict[str, dict[PurePath, T]] = defaultdict(dict)
        for path, value in entries:
            path = PurePath(path)
            if path in listed[name(path)]:
                raise ValueError(f"expected every image once in {source}, got {path} twice")
            listed[name(path)][path] = value
        # With folders from the file upwards, by which entries are sorted for a fast search.
        self._entries: dict[str, list[_Entry[T]]] = {
            name: sorted(
                ((path.parent.parts[::-1], path, value) for path, value in found.items()),
                key=itemgetter(0),
            )
            for name, found in listed.items()
        }

    def find(self, path: str | PurePath) -> T | None:
        """Value of a path; None if there is none of its name.

        Raises:
            ValueError: Several paths fit equally well.
        """
        path = PurePath(path)
        found = self._entries.get(self._name(path), [])
        if len(found) > 1:
            folders = Path(path).absolute().parent.parts[::-1]
            shared = (_within(found, folders[:number]) for number in range(len(folders), -1, -1))
            fit = next(filter(None, shared))
            found = [entry for entry in fit if entry[1].name == path.name] or fit
        if len(found) > 1:
            raise ValueError(
                f"expected a path whose folders say which image of {self._source} it is, got "
                f"{path}, which may be {found[0][1]} or {found[1][1]}"
            )
        return found[0][2] if found else None


def _within(entries: list[_Entry[T]], folders: tuple[str, ...]) -> list[_Entry[T]]:
    """Entries whose last folders are these."""

    def last(entry: _Entry[T]) -> tuple[str, ...]:
        return entry[0][: len(folders)]

    first = bisect_left(entries, folders, key=last)
    return entries[first : bisect_right(entries, folders, first, key=last)]
