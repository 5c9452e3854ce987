"""Check of COCO's panoptic annotations, as MMDetection's dataset and metric read them."""

from collections.abc import Hashable, Iterator, Set
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from panopticapi.evaluation import OFFSET, VOID
from panopticapi.utils import rgb2id

from ...utils.progress import run_each
from .coco import (
    CROWD,
    NUMBER,
    Entry,
    check_lists,
    is_box,
    read_coco,
    repeated,
    require_keys,
    without_collector,
)
from .faults import Fault, Finding, faults_of
from .files import UnreadableError, check_image, check_size, decode, open_file

_SEGMENT_KEYS = {"id", "category_id", "iscrowd", "area", "bbox"}


def check_panoptic(
    ann_file: str | Path,
    seg_dir: str | Path,
    img_dir: str | Path | None = None,
    *,
    num_workers: int = 1,
) -> list[Fault]:
    """Find the faults of panoptic annotations and of their files.

    Args:
        ann_file: JSON file with ``images``, ``annotations`` with ``segments_info``, and
            ``categories``.
        seg_dir: Folder of the PNG files; the id of a segment is red + 256 · green + 65536 · blue.
        img_dir: Folder of the images; None skips their check.
        num_workers: Processes that read files.

    Returns:
        Faults of the JSON file, then those of the files of each annotation.

    Raises:
        ValueError: ``ann_file`` is not a panoptic JSON file, or ``num_workers`` is below 1.
    """
    content = read_coco(ann_file)
    faults = check_panoptic_json(content, ann_file)
    images = {image["id"]: image for image in content["images"]}
    tasks = [(a, images[a["image_id"]]) for a in content["annotations"] if a["image_id"] in images]
    img_dir = None if img_dir is None else Path(img_dir)
    check = partial(_check_files, seg_dir=Path(seg_dir), img_dir=img_dir)
    return [*faults, *chain.from_iterable(run_each(check, tasks, num_workers, "check files"))]


@without_collector()
def check_panoptic_json(content: Entry, ann_file: str | Path) -> list[Fault]:
    """Find the faults of a panoptic JSON file that need no look at its PNG files.

    Args:
        content: What :func:`~.coco.read_coco` returns.
        ann_file: The JSON file, for messages.

    Raises:
        ValueError: An annotation lacks ``file_name`` or ``segments_info``.
    """
    path = Path(ann_file)
    require_keys(content, path, "annotations", ("image_id", "file_name", "segments_info"))
    annotations, categories = content["annotations"], content["categories"]
    findings = (
        check_lists(content),
        _check_isthing(categories),
        _check_names(content["images"], annotations),
        _check_segments(annotations, categories),
    )
    return faults_of(path, chain.from_iterable(findings))


def check_panoptic_png(annotation: Entry, image: Entry, seg_dir: str | Path) -> list[Fault]:
    """Find the faults of the PNG file of an annotation.

    Args:
        annotation: An entry of ``annotations``.
        image: The entry of ``images`` that it belongs to.
        seg_dir: Folder of the PNG files.
    """
    path = Path(seg_dir) / annotation["file_name"]
    try:
        segments = read_segments(path)
    except UnreadableError as error:
        return [error.fault]
    size = image["height"], image["width"]
    return check_size(path, segments.shape, size) + faults_of(
        path, _check_ids(annotation, segments)
    )


def _check_files(task: tuple[Entry, Entry], seg_dir: Path, img_dir: Path | None) -> list[Fault]:
    annotation, image = task
    faults = check_panoptic_png(annotation, image, seg_dir)
    if img_dir is not None:
        size = image["height"], image["width"]
        faults = check_image(img_dir / image["file_name"], size) + faults
    return faults


def _check_isthing(categories: list[Entry]) -> Iterator[Finding]:
    for one in categories:
        if one.get("isthing") not in (0, 1):
            yield (
                "category without isthing",
                f"category {one['id']} ({one['name']}): expected isthing, 1 for things and 0 for "
                f"stuff, got {one.get('isthing', 'none')}",
            )
    for first, second in pairwise(categories):
        if (first.get("isthing"), second.get("isthing")) == (0, 1):
            yield (
                "stuff before things",
                f"category {second['id']} ({second['name']}), a thing, follows stuff: labels are "
                "numbered in the order of the file, things first",
            )


def _check_names(images: list[Entry], annotations: list[Entry]) -> Iterator[Finding]:
    for key, what in (("image_id", "are of the image"), ("file_name", "have the file")):
        for value in repeated(annotation[key] for annotation in annotations):
            yield "duplicate id", f"several annotations {what} {value}"
    named = {annotation["image_id"]: annotation["file_name"] for annotation in annotations}
    for image in images:
        # mmdet derives the name of the PNG from the image's and ignores the annotation's.
        expected, found = image["file_name"].replace(".jpg", ".png"), named.get(image["id"])
        if found is None:
            yield (
                "image without annotation",
                f"image {image['id']} has no annotation: mmdet reads {expected}, and takes all of "
                "it for void",
            )
        elif found != expected:
            yield (
                "file name",
                f"image {image['id']}: mmdet reads {expected} for {image['file_name']}, but the "
                f"annotation names {found}",
            )


def _check_segments(annotations: list[Entry], categories: list[Entry]) -> Iterator[Finding]:
    known = {category["id"] for category in categories}
    stuff = {category["id"] for category in categories if category.get("isthing") == 0}
    total = crowds = 0
    for annotation in annotations:
        where, segments = f"image {annotation['image_id']}", annotation["segments_info"]
        ids: set[int] = set()
        parts: set[int] = set()
        for segment in segments:
            if fault := _segment_fault(segment, known):
                number = segment.get("id") if isinstance(segment, dict) else segment
                yield fault[0], f"{where}, segment {number}: {fault[1]}"
                continue
            number, category = segment["id"], segment["category_id"]
            if number in ids:
                yield "duplicate id", f"{where}: several segments have the id {number}"
            ids.add(number)
            if segment["iscrowd"] == 1:
                crowds += 1
            elif category in stuff:
                if category in parts:
                    yield (
                        "stuff in parts",
                        f"{where}: several segments are of the stuff {category}; expected one",
                    )
                parts.add(category)
        total += len(segments)
    if annotations and not total:
        yield "no segments", "no annotation has a segment: everything is void"
    elif annotations and crowds == total:
        yield "crowds only", "all segments are crowds, which training and scores leave out"


def _segment_fault(segment: Any, categories: Set[Any]) -> Finding | None:
    """Why mmdet cannot use a segment of the JSON file."""
    missing = _SEGMENT_KEYS.difference(segment if isinstance(segment, dict) else ())
    if missing:
        return "incomplete segment", f"it lacks {', '.join(sorted(missing))}, and mmdet stops"
    number, category = segment["id"], segment["category_id"]
    box, area, crowd = segment["bbox"], segment["area"], segment["iscrowd"]
    if number == VOID:
        return "void id", f"expected an id from 1 on, since {VOID} means void"
    if not isinstance(number, NUMBER) or not 0 < number < OFFSET:
        return (
            "segment id",
            f"expected an id from 1 to {OFFSET - 1}, which a color holds, got {number!r}",
        )
    if not isinstance(category, Hashable) or category not in categories:
        return "unknown category", f"category {category} is not among the categories"
    if not is_box(box):
        return "no box", f"expected left, top, width and height as bbox, got {box}"
    if not isinstance(area, NUMBER):
        return "incomplete segment", f"expected the area in pixels, got {area!r}"
    if crowd not in CROWD:
        return "incomplete segment", f"expected iscrowd, 0 or 1, got {crowd!r}"
    if box[2] < 1 or box[3] < 1 or not area > 0:
        return (
            "empty box",
            f"mmdet leaves out segments whose box {box} is below 1 pixel or whose area, {area}, is "
            "0",
        )
    return None


def read_segments(path: Path) -> NDArray[Any]:
    """Segment id of each pixel ``(H, W)``, as mmdet reads it.

    Raises:
        UnreadableError: The file is missing or damaged, or is no PNG of 8 bits per color.
    """
    with open_file(path) as png:
        if png.format != "PNG":
            raise UnreadableError(
                "no PNG", path, f"expected a PNG, whose colors are exact, got {png.format}"
            )
        # mmdet takes the color of a palette, and no alpha; of 16 bits it takes the upper 8.
        if path.open("rb").read(25)[24] > 8:
            raise UnreadableError(
                "PNG of 16 bits", path, "expected 8 bits per color, got 16, which mmdet halves"
            )
        if png.mode not in ("RGB", "RGBA", "P"):
            raise UnreadableError(
                "PNG without colors",
                path,
                f"expected an RGB PNG, whose colors are ids, got mode {png.mode}",
            )
        decode(path, png)
        return rgb2id(np.asarray(png.convert("RGB")))


def _check_ids(annotation: Entry, segments: NDArray[Any]) -> Iterator[Finding]:
    ids, counts = np.unique(segments, return_counts=True)
    areas = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    infos = {
        info["id"]: info
        for info in annotation["segments_info"]
        if isinstance(info, dict) and isinstance(info.get("id"), NUMBER)
    }
    for value in sorted(areas.keys() - infos.keys() - {VOID}):
        message = f"id {value}, of {areas[value]} pixels, is not in the JSON"
        yield "PNG id not in the JSON", message
    for value in sorted(infos.keys() - areas.keys()):
        yield "JSON id not in the PNG", f"id {value} of the JSON has no pixel"
    for value in sorted(infos.keys() & areas.keys() - {VOID}):
        area = infos[value].get("area", areas[value])
        if area != areas[value]:
            yield (
                "area",
                f"id {value} has {areas[value]} pixels, and the area {area} in the JSON, which PQ "
                "takes",
            )
