"""What the checks of a run need to know of an annotation file in COCO's format."""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pycocotools.coco

from ...datasets.checks import Fault, check_instances_json, check_panoptic_json, read_coco
from ...datasets.checks.coco import Entry, image_sizes

NUMBER_OF_SAMPLES = 8
"""Images of a dataset whose files are opened."""


@dataclass(frozen=True)
class Annotations:
    """Summary of an annotation file.

    Attributes:
        file: The file.
        panoptic: Whether its annotations have segments; None if there are no annotations.
        categories: ``isthing`` of each category by name, in the file's order; None if not given.
        used: Names of the categories that annotations have.
        images: Name of each image by id.
        maps: Name of each image's PNG file of segments, by id.
        targets: Segments of each image that a query has to find, by id: objects, and classes of
            stuff. Crowds are none.
        sides: Shorter side of each image of a valid size, in pixels, by id.
        objects: Ids of the images with objects of each category, by its name.
        samples: First images, each with its annotations.
        faults: Faults of the file's content.
    """

    file: Path
    panoptic: bool | None
    categories: Mapping[str, int | None]
    used: frozenset[str]
    images: Mapping[Any, str]
    maps: Mapping[Any, str]
    targets: Mapping[Any, int]
    sides: Mapping[Any, float]
    objects: Mapping[str, Set[Any]]
    samples: tuple[tuple[Entry, list[Entry]], ...]
    faults: tuple[Fault, ...]


Version = tuple[str, int, int]
"""Path, time of the last change and size of a file."""

_known: dict[Version, Annotations] = {}
_handed_over: dict[str, tuple[Version, Entry]] = {}


def read_annotations(file: str | Path, *, hand_over: bool = False) -> Annotations:
    """Read an annotation file; what was read of one version of it is remembered.

    Args:
        file: JSON file in COCO's format of panoptic or instance annotations.
        hand_over: Whether pycocotools gets the parsed content when it next reads this file, which
            takes as long as all the rest for large files.

    Raises:
        ValueError: The file has another format; the message names it.
    """
    version = _version(file)
    if version not in _known:
        content = read_coco(Path(file))
        _known[version] = _summarize(Path(file), content)
        if hand_over:
            _handed_over[version[0]] = version, content
            pycocotools.coco.json = SimpleNamespace(**{**vars(json), "load": _load})
    return _known[version]


def release_annotations() -> None:
    """Forget what was read, also the parsed content that no dataset has asked for."""
    _known.clear()
    _handed_over.clear()
    pycocotools.coco.json = json


def _version(file: str | Path) -> Version:
    stat = os.stat(file)
    return os.path.abspath(file), stat.st_mtime_ns, stat.st_size


def _summarize(file: Path, content: Entry) -> Annotations:
    panoptic = None
    if annotations := content["annotations"]:
        panoptic = "segments_info" in annotations[0]
    check = check_panoptic_json if panoptic else check_instances_json
    faults = tuple(check(content, file))
    images = content["images"][:NUMBER_OF_SAMPLES]
    samples: dict[Any, list[Entry]] = {image["id"]: [] for image in images}
    isthing = {one["id"]: one.get("isthing", 1) for one in content["categories"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    targets: dict[Any, int] = {}
    maps: dict[Any, str] = {}
    used: set[Any] = set()
    objects: defaultdict[str, set[Any]] = defaultdict(set)
    for annotation in annotations:
        image = annotation["image_id"]
        if image in samples:
            samples[image].append(annotation)
        if panoptic:
            segments = [s for s in annotation["segments_info"] if _has_category(s)]
            maps[image] = annotation["file_name"]
            found = [s["category_id"] for s in segments if not s.get("iscrowd")]
            stuff = {one for one in found if not isthing.get(one)}
            things = [one for one in found if one not in stuff]
            targets[image] = len(things) + len(stuff)
            for one in things:
                objects[names.get(one, "")].add(image)
            used.update(s["category_id"] for s in segments)
        else:
            targets[image] = targets.get(image, 0) + (not annotation.get("iscrowd"))
            category = annotation.get("category_id")
            objects[names.get(category, "")].add(image)
            used.add(category)
    return Annotations(
        file=file,
        panoptic=panoptic,
        categories={one["name"]: one.get("isthing") for one in content["categories"]},
        used=frozenset(names[one] for one in used if one in names),
        images={image["id"]: image["file_name"] for image in content["images"]},
        maps=maps,
        targets=targets,
        sides={image: min(size) for image, size in image_sizes(content["images"]).items()},
        objects=objects,
        samples=tuple((image, samples[image["id"]]) for image in images),
        faults=faults,
    )


def _has_category(segment: Any) -> bool:
    """Whether a segment names a category, or else is a fault of the file's content."""
    return isinstance(segment, dict) and isinstance(segment.get("category_id"), int | float | str)


def _load(file: Any) -> Any:
    """Stand in for ``json.load`` in pycocotools, and give parsed content to its first reader."""
    path = os.path.abspath(getattr(file, "name", ""))
    if path in _handed_over:
        version, content = _handed_over.pop(path)
        if version == _version(path):
            return content
    return json.load(file)
