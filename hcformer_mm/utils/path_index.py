"""Values of images, found by the images' paths."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Generic, TypeVar

T = TypeVar("T")


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
        self._entries: defaultdict[str, dict[PurePath, T]] = defaultdict(dict)
        for path, value in entries:
            path = PurePath(path)
            if path in self._entries[name(path)]:
                raise ValueError(f"expected every image once in {source}, got {path} twice")
            self._entries[name(path)][path] = value

    def find(self, path: str | PurePath) -> T | None:
        """Value of a path; None if there is none of its name.

        Raises:
            ValueError: Several paths fit equally well.
        """
        path = PurePath(path)
        found = self._entries.get(self._name(path), {})
        if len(found) < 2:
            return next(iter(found.values()), None)
        folders = Path(path).absolute().parent.parts
        fit = {
            one: (_common_end(one.parent.parts, folders), one.name == path.name) for one in found
        }
        best = [one for one in found if fit[one] == max(fit.values())]
        if len(best) > 1:
            raise ValueError(
                f"expected a path whose folders say which image of {self._source} it is, got "
                f"{path}, which may be {best[0]} or {best[1]}"
            )
        return found[best[0]]


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Number of last parts that two paths share."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
