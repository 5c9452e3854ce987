"""Finds what is wrong with panoptic annotations: faults that training survives and PQ does not."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.utils import track_parallel_progress, track_progress
from panopticapi.utils import rgb2id
from PIL import ExifTags, Image

VOID = 0
_SEGMENT_KEYS = ("id", "category_id", "iscrowd", "area", "bbox")


@dataclass(frozen=True)
class Fault:
    """Something that is wrong in a file.

    Attributes:
        kind: What it is, in the words of a summary.
        file: Path of the file that is wrong.
        message: What stands there, with its id, and what was expected.
    """

    kind: str
    file: Path
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


@dataclass(frozen=True)
class _Task:
    """What one worker needs to check one annotation."""

    annotation: dict[str, Any]
    image: dict[str, Any]
    categories: frozenset[int]
    stuff: frozenset[int]
    ann_file: Path
    seg_dir: Path
    img_dir: Path | None


def check_panoptic(
    ann_file: str | Path,
    seg_dir: str | Path,
    img_dir: str | Path | None = None,
    *,
    num_workers: int = 1,
) -> list[Fault]:
    """Check annotations in COCO's panoptic format as the host's dataset and metric read them.

    Args:
        ann_file: The JSON file: ``images``, ``annotations`` with their ``segments_info``, and
            ``categories``.
        seg_dir: Folder of the PNG files, in which red + 256 green + 65536 blue is a segment's id.
        img_dir: Folder of the images; without it they are not looked at.
        num_workers: Processes that read PNG files.

    Returns:
        What is wrong: of the JSON file first, then by annotation. Empty if all is well.

    Raises:
        ValueError: ``ann_file`` is no panoptic JSON file, or ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"expected num_workers of at least 1, got {num_workers}")
    ann_file, seg_dir = Path(ann_file), Path(seg_dir)
    content = _read(ann_file)
    images = {image["id"]: image for image in content["images"]}
    faults = [
        *_check_categories(ann_file, content["categories"]),
        *_check_images(ann_file, content["images"], content["annotations"]),
    ]
    stuff = frozenset(c["id"] for c in content["categories"] if c.get("isthing") == 0)
    tasks = [
        _Task(
            annotation,
            images[annotation["image_id"]],
            frozenset(category["id"] for category in content["categories"]),
            stuff,
            ann_file,
            seg_dir,
            None if img_dir is None else Path(img_dir),
        )
        for annotation in content["annotations"]
        if annotation["image_id"] in images
    ]
    if num_workers == 1:
        found = track_progress(_check_annotation, tasks)
    else:
        found = track_parallel_progress(_check_annotation, tasks, num_workers, chunksize=16)
    return [*faults, *(fault for some in found for fault in some)]


def _read(ann_file: Path) -> dict[str, Any]:
    """The annotations, with the keys without which nothing can be checked."""
    try:
        content = json.loads(ann_file.read_text())
        for part, keys in (
            ("images", ("id", "file_name", "height", "width")),
            ("annotations", ("image_id", "file_name", "segments_info")),
            ("categories", ("id", "name")),
        ):
            for entry in content[part]:
                for key in keys:
                    if key not in entry:
                        raise KeyError(f"{key} in {entry}")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected {ann_file} to hold images, annotations with segments_info, and categories "
            f"(COCO's panoptic format): {type(error).__name__}: {error}"
        ) from None
    return content


def _repeated(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(ann_file: Path, categories: list[dict[str, Any]]) -> Iterator[Fault]:
    for category in categories:
        if category.get("isthing") not in (0, 1):
            yield Fault(
                "category without isthing",
                ann_file,
                f"category {category['id']} ({category['name']}): expected isthing, 1 for things "
                f"and 0 for stuff, got {category.get('isthing', 'none')}",
            )
    for key in ("id", "name"):
        for value in _repeated(category[key] for category in categories):
            yield Fault("duplicate id", ann_file, f"several categories have the {key} {value}")
    for first, second in pairwise(categories):
        if (first.get("isthing"), second.get("isthing")) == (0, 1):
            yield Fault(
                "stuff before things",
                ann_file,
                f"category {second['id']} ({second['name']}), a thing, stands after stuff; labels "
                "follow the order of the file, and those of things come first",
            )


def _check_images(
    ann_file: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> Iterator[Fault]:
    for value in _repeated(image["id"] for image in images):
        yield Fault("duplicate id", ann_file, f"several images have the id {value}")
    for value in _repeated(annotation["image_id"] for annotation in annotations):
        yield Fault("duplicate id", ann_file, f"several annotations are of the image {value}")
    for value in _repeated(annotation["file_name"] for annotation in annotations):
        yield Fault("duplicate id", ann_file, f"several annotations have the file {value}")
    known = {image["id"] for image in images}
    annotated = {annotation["image_id"] for annotation in annotations}
    for value in sorted(known - annotated, key=str):
        yield Fault("image without annotation", ann_file, f"image {value} has no annotation")
    for value in sorted(annotated - known, key=str):
        yield Fault(
            "annotation without image",
            ann_file,
            f"an annotation is of the image {value}, which is not among the images",
        )


def _check_annotation(task: _Task) -> list[Fault]:
    """What is wrong with the segments and files of one image."""
    faults = [*_check_names(task), *_check_segments(task), *_check_image(task)]
    path = task.seg_dir / task.annotation["file_name"]
    if not path.is_file():
        return [*faults, Fault("missing file", path, "the PNG of the annotation does not exist")]
    try:
        with Image.open(path) as png:
            mode, pixels = png.mode, np.asarray(png)
    except OSError as error:
        return [*faults, Fault("unreadable file", path, f"expected a PNG: {error}")]
    faults += _check_size(path, pixels.shape[:2], task.image)
    if mode not in ("RGB", "RGBA"):
        message = f"expected an RGB PNG, whose colors are ids, got mode {mode}"
        return [*faults, Fault("PNG without colors", path, message)]
    return [*faults, *_check_ids(task, path, pixels)]


def _check_names(task: _Task) -> Iterator[Fault]:
    # The host finds the PNG by the name of the image, and never reads that of the annotation.
    image, name = task.image["file_name"], task.annotation["file_name"]
    expected = image.replace(".jpg", ".png")
    if name != expected:
        yield Fault(
            "file name",
            task.ann_file,
            f"image {task.image['id']}: the host reads {expected} for {image}, and the "
            f"annotation names {name}",
        )


def _check_segments(task: _Task) -> Iterator[Fault]:
    segments = task.annotation["segments_info"]
    where = f"image {task.image['id']}"
    for segment in segments:
        name = f"{where}, segment {segment.get('id', 'without id')}"
        missing = [key for key in _SEGMENT_KEYS if key not in segment]
        if missing:
            yield Fault("incomplete segment", task.ann_file, f"{name} lacks {', '.join(missing)}")
        if segment.get("category_id") not in (None, *task.categories):
            message = f"{name}: category {segment['category_id']} is not among the categories"
            yield Fault("unknown category", task.ann_file, message)
        if segment.get("id") == VOID:
            message = f"{name}: {VOID} means void; expected another id"
            yield Fault("void id", task.ann_file, message)
        box = segment.get("bbox")
        if "bbox" in segment and not (isinstance(box, list) and len(box) == 4):
            message = f"{name}: expected left, top, width and height as bbox, got {box}"
            yield Fault("no box", task.ann_file, message)
        elif box is not None and min(box[2:]) < 1:
            message = f"{name}: the host drops segments whose box {box} is below 1 pixel"
            yield Fault("empty box", task.ann_file, message)
    for value in _repeated(segment.get("id") for segment in segments):
        yield Fault("duplicate id", task.ann_file, f"{where}: several segments have the id {value}")
    labels = (s.get("category_id") for s in segments if not s.get("iscrowd"))
    for value in _repeated(label for label in labels if label in task.stuff):
        message = f"{where}: several segments are of the stuff {value}; expected one"
        yield Fault("stuff in parts", task.ann_file, message)


def _check_image(task: _Task) -> Iterator[Fault]:
    if task.img_dir is None:
        return
    path = task.img_dir / task.image["file_name"]
    if not path.is_file():
        yield Fault("missing file", path, f"the image of image {task.image['id']} does not exist")
        return
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except OSError as error:
        yield Fault("unreadable file", path, f"expected an image: {error}")
        return
    # The host turns images as their EXIF data say; from 5 on, they lie on their sides.
    size = (width, height) if orientation >= 5 else (height, width)
    yield from _check_size(path, size, task.image)


def _check_size(path: Path, size: tuple[int, ...], image: dict[str, Any]) -> Iterator[Fault]:
    expected = (image["height"], image["width"])
    if tuple(size) != expected:
        yield Fault(
            "size",
            path,
            f"expected height and width {expected}, as the JSON says of image {image['id']}, got "
            f"{tuple(size)}",
        )


def _check_ids(task: _Task, path: Path, pixels: np.ndarray) -> Iterator[Fault]:
    ids, counts = np.unique(rgb2id(pixels), return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    segments = {
        segment["id"]: segment for segment in task.annotation["segments_info"] if "id" in segment
    }
    for value in sorted(set(areas) - set(segments) - {VOID}):
        message = f"id {value}, of {areas[value]} pixels, is not in the JSON"
        yield Fault("PNG id not in the JSON", path, message)
    for value in sorted(set(segments) - set(areas)):
        yield Fault("JSON id not in the PNG", path, f"id {value} of the JSON is on no pixel")
    for value in sorted(set(segments) & set(areas) - {VOID}):
        area = segments[value].get("area", areas[value])
        if area != areas[value]:
            message = f"id {value} has {areas[value]} pixels, and the area {area} in the JSON"
            yield Fault("area", path, message)
