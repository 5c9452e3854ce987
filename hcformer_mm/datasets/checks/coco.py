"""What COCO's panoptic and instance files have in common: reading, categories and images."""

import gc
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from math import isfinite
from operator import itemgetter
from pathlib import Path
from typing import Any

from ...utils.errors import InputError, cut
from .faults import Finding

Entry = dict[str, Any]
NUMBER = (int, float)  # made once, since millions of values are compared with it
CROWD = (0, 1)  # mmdet takes any other text, number or list for 1

_KEYS = dict(
    images=("id", "file_name", "height", "width"),
    annotations=("image_id",),
    categories=("id", "name"),
)

_TYPES: dict[str, Any] = dict(file_name=str, name=str, segments_info=list)


@contextmanager
def without_collector() -> Iterator[None]:
    """Do not look for garbage among the millions of objects of an annotation file.

    There is none, and to look for it takes as long as to read the file.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_collector()
def read_coco(ann_file: str | Path) -> Entry:
    """Read a COCO JSON file, panoptic or of instances.

    Returns:
        The object in the file, which has ``images``, ``annotations`` and ``categories``.

    Raises:
        InputError: The file is no JSON file, or lacks one of these lists or a key of their entries.
        FileNotFoundError: No such file.
    """
    path = Path(ann_file)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError or UnicodeDecodeError
        raise InputError(
            f"expected {path} to be a COCO JSON file; it is damaged or another file: {error}"
        ) from None
    if isinstance(content, dict):
        content.setdefault("annotations", [])  # test sets have none
    for part, keys in _KEYS.items():
        require_keys(content, path, part, keys)
    return content


def require_keys(content: Any, path: Path, part: str, keys: Iterable[str]) -> None:
    """Refuse a file unless a part of it is a list of entries that have certain keys.

    Raises:
        InputError: The part is missing or no list, or one of its entries lacks a key.
    """
    expected = f"expected {path} to have a list of {part}, each with {', '.join(keys)}"
    if not isinstance(content, dict):
        raise InputError(f"{expected} (COCO's format); got a {type(content).__name__}")
    entries = content.get(part)
    if not isinstance(entries, list):
        raise InputError(
            f"{expected} (COCO's format); got {', '.join(content) or 'an empty object'}"
        )
    for key in keys:
        kind = _TYPES.get(key, int | float | str)
        try:  # one entry after the other would take seconds
            fine = all(
                issubclass(one, kind) for one in set(map(type, map(itemgetter(key), entries)))
            )
        except (KeyError, TypeError, IndexError):
            fine = False
        for number, entry in enumerate(() if fine else entries):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise InputError(f"{expected} (COCO's format); entry {number} is {cut(entry, 200)}")


def check_lists(content: Entry) -> Iterator[Finding]:
    """Find the faults of categories and images, which panoptic and instance files have alike."""
    yield from _check_categories(content["categories"])
    yield from _check_images(content["images"])
    yield from _check_image_ids(content["images"], content["annotations"])


def _check_categories(categories: list[Entry]) -> Iterator[Finding]:
    if not categories:
        yield "no category", "expected at least one category, got none"
    for key in ("id", "name"):
        for value in repeated(category[key] for category in categories):
            yield (
                "duplicate id",
                f"several categories have the {key} {value}: labels are numbered by them",
            )


def _check_images(images: list[Entry]) -> Iterator[Finding]:
    if not images:
        yield "no image", "expected at least one image, got none"
    for value in repeated(image["id"] for image in images):
        yield "duplicate id", f"several images have the id {value}: all but the last one are lost"
    for value in repeated(image["file_name"] for image in images):
        yield "file in several images", f"several images have the file {value}"
    sizes = image_sizes(images)
    for image in images:
        if image["id"] not in sizes:
            size = image["height"], image["width"]
            yield "size", f"image {image['id']}: expected height and width in pixels, got {size}"


def image_sizes(images: list[Entry]) -> dict[Any, tuple[int, int]]:
    """Height and width, in pixels, of every image by its id; without images of no valid size."""
    sizes = ((image["id"], (image["height"], image["width"])) for image in images)
    return {
        number: size
        for number, size in sizes
        if all(isinstance(length, NUMBER) and 1 <= length < 1e6 for length in size)
    }


def _check_image_ids(images: list[Entry], annotations: list[Entry]) -> Iterator[Finding]:
    known = {image["id"] for image in images}
    unknown = set(map(itemgetter("image_id"), annotations)) - known
    types = {str(value): value for value in known} if unknown else {}
    for value in sorted(unknown, key=str):
        if (other := types.get(str(value))) is not None:
            yield (
                "type of ids",
                f"annotations are of the image {value!r}, and the image's id is {other!r}: all "
                "annotations are lost; write both as numbers",
            )
        else:
            yield (
                "annotation without image",
                f"an annotation is of the image {value}, which is not among the images",
            )


def is_box(box: Any) -> bool:
    """Whether something is a list of four finite numbers."""
    try:
        return isinstance(box, list) and len(box) == 4 and isfinite(sum(box))
    except TypeError:
        return False


def repeated(values: Iterable[Hashable]) -> list[Any]:
    """Values that occur several times, in order of their first occurrence."""
    values = list(values)
    if len(set(values)) == len(values):
        return []
    return [value for value, count in Counter(values).items() if count > 1]
