"""Check of panoptic annotations for faults that raise no error in training but make PQ zero."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.utils import track_parallel_progress, track_progress
from numpy.typing import NDArray
from panopticapi.evaluation import VOID
from panopticapi.utils import rgb2id
from PIL import ExifTags, Image

_SEGMENT_KEYS = ("id", "category_id", "iscrowd", "area", "bbox")

Entry = dict[str, Any]
Finding = tuple[str, str]
"""Kind and message of a fault."""


@dataclass(frozen=True)
class Fault:
    """A fault of one file.

    Attributes:
        kind: Kind of the fault, for a summary.
        file: The faulty file.
        message: What was found, with ids, and what was expected.
    """

    kind: str
    file: Path
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def check_panoptic(
    ann_file: str | Path,
    seg_dir: str | Path,
    img_dir: str | Path | None = None,
    *,
    num_workers: int = 1,
) -> list[Fault]:
    """Find the faults of COCO panoptic annotations, as mmdet's dataset and metric read them.

    Args:
        ann_file: JSON file with ``images``, ``annotations`` with ``segments_info``, and
            ``categories``.
        seg_dir: Folder of the PNG files; the id of a segment is red + 256 · green + 65536 · blue.
        img_dir: Folder of the images; None skips their check.
        num_workers: Processes that read PNG files.

    Returns:
        Faults of the JSON file as a whole, then of each annotation; an empty list without faults.

    Raises:
        ValueError: ``ann_file`` is not a panoptic JSON file, or ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"expected num_workers of at least 1, got {num_workers}")
    ann_file = Path(ann_file)
    images, annotations, categories = _read(ann_file)
    by_id = {image["id"]: image for image in images}
    check = partial(
        _check_annotation,
        ann_file=ann_file,
        seg_dir=Path(seg_dir),
        img_dir=None if img_dir is None else Path(img_dir),
        categories={category["id"] for category in categories},
        stuff={category["id"] for category in categories if category.get("isthing") == 0},
    )
    tasks = [(a, by_id[a["image_id"]]) for a in annotations if a["image_id"] in by_id]
    if num_workers == 1:
        found = track_progress(check, tasks)
    else:
        found = track_parallel_progress(check, tasks, num_workers, chunksize=16)
    findings = (*_check_categories(categories), *_check_images(images, annotations))
    faults = [Fault(kind, ann_file, message) for kind, message in findings]
    return [*faults, *(fault for some in found for fault in some)]


def _read(ann_file: Path) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Return images, annotations and categories, which have the keys that the checks need."""
    keys = dict(
        images=("id", "file_name", "height", "width"),
        annotations=("image_id", "file_name", "segments_info"),
        categories=("id", "name"),
    )
    try:
        content = json.loads(ann_file.read_text())
        for part, required in keys.items():
            for entry in content[part]:
                for key in required:
                    if key not in entry:
                        raise KeyError(f"{key} in {entry}")
        return content["images"], content["annotations"], content["categories"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {ann_file} to hold images, annotations with segments_info, and categories "
            f"(COCO's panoptic format): {type(error).__name__}: {error}"
        ) from None


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(categories: list[Entry]) -> Iterator[Finding]:
    for one in categories:
        if one.get("isthing") not in (0, 1):
            yield (
                "category without isthing",
                f"category {one['id']} ({one['name']}): expected isthing, 1 for things and 0 for "
                f"stuff, got {one.get('isthing', 'none')}",
            )
    for key in ("id", "name"):
        for value in _repeated(category[key] for category in categories):
            yield "duplicate id", f"several categories have the {key} {value}"
    for first, second in pairwise(categories):
        if (first.get("isthing"), second.get("isthing")) == (0, 1):
            yield (
                "stuff before things",
                f"category {second['id']} ({second['name']}), a thing, follows stuff: labels are "
                "numbered in the order of the file, things first",
            )


def _check_images(images: list[Entry], annotations: list[Entry]) -> Iterator[Finding]:
    for value in _repeated(image["id"] for image in images):
        yield "duplicate id", f"several images have the id {value}"
    for key, what in (("image_id", "are of the image"), ("file_name", "have the file")):
        for value in _repeated(annotation[key] for annotation in annotations):
            yield "duplicate id", f"several annotations {what} {value}"
    known = {image["id"] for image in images}
    annotated = {annotation["image_id"] for annotation in annotations}
    for value in sorted(known - annotated, key=str):
        yield "image without annotation", f"image {value} has no annotation"
    for value in sorted(annotated - known, key=str):
        yield (
            "annotation without image",
            f"an annotation is of the image {value}, which is not among the images",
        )


def _check_annotation(
    task: tuple[Entry, Entry],
    *,
    ann_file: Path,
    seg_dir: Path,
    img_dir: Path | None,
    categories: Set[int],
    stuff: Set[int],
) -> list[Fault]:
    """Find the faults of one annotation, its image and its PNG file."""
    annotation, image = task
    png = seg_dir / annotation["file_name"]
    findings = [
        (ann_file, _check_names(annotation, image)),
        (ann_file, _check_segments(annotation, categories, stuff)),
        (png, _check_png(png, annotation, image)),
    ]
    if img_dir is not None:
        path = img_dir / image["file_name"]
        findings.insert(2, (path, _check_image(path, image)))
    return [Fault(kind, file, message) for file, found in findings for kind, message in found]


def _check_names(annotation: Entry, image: Entry) -> Iterator[Finding]:
    # mmdet derives the name of the PNG from the image's and ignores the annotation's.
    expected = image["file_name"].replace(".jpg", ".png")
    if annotation["file_name"] != expected:
        yield (
            "file name",
            f"image {image['id']}: mmdet reads {expected} for {image['file_name']}, but the "
            f"annotation names {annotation['file_name']}",
        )


def _check_segments(annotation: Entry, categories: Set[int], stuff: Set[int]) -> Iterator[Finding]:
    segments = annotation["segments_info"]
    where = f"image {annotation['image_id']}"
    for segment in segments:
        name = f"{where}, segment {segment.get('id', 'without id')}"
        missing = [key for key in _SEGMENT_KEYS if key not in segment]
        if missing:
            yield "incomplete segment", f"{name} lacks {', '.join(missing)}"
        category, box = segment.get("category_id"), segment.get("bbox")
        if category is not None and category not in categories:
            yield "unknown category", f"{name}: category {category} is not among the categories"
        if segment.get("id") == VOID:
            yield "void id", f"{name}: {VOID} means void; expected another id"
        if "bbox" in segment and not (isinstance(box, list) and len(box) == 4):
            yield "no box", f"{name}: expected left, top, width and height as bbox, got {box}"
        elif box is not None and min(box[2:]) < 1:
            yield "empty box", f"{name}: mmdet drops segments whose box {box} is below 1 pixel"
    for value in _repeated(segment.get("id") for segment in segments):
        yield "duplicate id", f"{where}: several segments have the id {value}"
    labels = (s.get("category_id") for s in segments if not s.get("iscrowd"))
    for value in _repeated(label for label in labels if label in stuff):
        yield "stuff in parts", f"{where}: several segments are of the stuff {value}; expected one"


def _check_image(path: Path, image: Entry) -> Iterator[Finding]:
    if not path.is_file():
        yield "missing file", f"the image of image {image['id']} does not exist"
        return
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except OSError as error:
        yield "unreadable file", f"expected an image: {error}"
        return
    # mmdet applies the EXIF orientation; values from 5 on swap height and width.
    yield from _check_size((width, height) if orientation >= 5 else (height, width), image)


def _check_png(path: Path, annotation: Entry, image: Entry) -> Iterator[Finding]:
    if not path.is_file():
        yield "missing file", "the PNG of the annotation does not exist"
        return
    try:
        with Image.open(path) as png:
            mode, pixels = png.mode, np.asarray(png)
    except OSError as error:
        yield "unreadable file", f"expected a PNG: {error}"
        return
    yield from _check_size(pixels.shape[:2], image)
    if mode in ("RGB", "RGBA"):
        yield from _check_ids(annotation, rgb2id(pixels))
    else:
        yield "PNG without colors", f"expected an RGB PNG, whose colors are ids, got mode {mode}"


def _check_size(size: tuple[int, ...], image: Entry) -> Iterator[Finding]:
    expected = (image["height"], image["width"])
    if size != expected:
        yield (
            "size",
            f"expected height and width {expected}, as in the JSON for image {image['id']}, got "
            f"{size}",
        )


def _check_ids(annotation: Entry, segments: NDArray[Any]) -> Iterator[Finding]:
    ids, counts = np.unique(segments, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    infos = {info["id"]: info for info in annotation["segments_info"] if "id" in info}
    for value in sorted(areas.keys() - infos.keys() - {VOID}):
        message = f"id {value}, of {areas[value]} pixels, is not in the JSON"
        yield "PNG id not in the JSON", message
    for value in sorted(infos.keys() - areas.keys()):
        yield "JSON id not in the PNG", f"id {value} of the JSON has no pixel"
    for value in sorted(infos.keys() & areas.keys() - {VOID}):
        area = infos[value].get("area", areas[value])
        if area != areas[value]:
            yield "area", f"id {value} has {areas[value]} pixels, and the area {area} in the JSON"
