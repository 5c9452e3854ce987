"""Check of COCO's instance annotations, as MMDetection's dataset and pycocotools read them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as mask_utils

from ...evaluation.functional.coco_masks import encode_annotation, is_far_outside, mask_fault
from ...utils.progress import run_each
from .coco import (
    CROWD,
    NUMBER,
    Entry,
    check_lists,
    image_sizes,
    is_box,
    read_coco,
    repeated,
    require_keys,
    without_collector,
)
from .faults import Fault, Finding, faults_of
from .files import check_image

_SAMPLE = 50_000
"""Number of masks that the rules of the JSON file compare with boxes; check_masks takes all."""


def check_instances(
    ann_file: str | Path, img_dir: str | Path | None = None, *, num_workers: int = 1
) -> list[Fault]:
    """Find the faults of instance annotations, of their masks and of the images.

    Args:
        ann_file: JSON file with ``images``, ``annotations`` and ``categories``.
        img_dir: Folder of the images; None skips their check.
        num_workers: Processes that decode masks and read images.

    Returns:
        Faults of the JSON file, then those of the masks and the file of each image.

    Raises:
        ValueError: ``ann_file`` is not a COCO JSON file, or ``num_workers`` is below 1.
    """
    content = read_coco(ann_file)
    faults = check_instances_json(content, ann_file)
    by_image = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    tasks = [(image, by_image[image["id"]]) for image in content["images"]]
    img_dir = None if img_dir is None else Path(img_dir)
    check = partial(_check_image, ann_file=Path(ann_file), img_dir=img_dir)
    more = chain.from_iterable(run_each(check, tasks, num_workers, "check files"))
    return list(dict.fromkeys((*faults, *more)))  # both compare outlines with boxes


@without_collector()
def check_instances_json(content: Entry, ann_file: str | Path) -> list[Fault]:
    """Find the faults of an instance JSON file that need neither images nor decoded masks.

    Args:
        content: What :func:`~.coco.read_coco` returns.
        ann_file: The JSON file, for messages.

    Raises:
        ValueError: An annotation lacks ``id`` or ``category_id``.
    """
    path = Path(ann_file)
    require_keys(content, path, "annotations", ("id", "image_id", "category_id"))
    return faults_of(path, chain(check_lists(content), _check_annotations(content)))


def check_masks(image: Entry, annotations: list[Entry], ann_file: str | Path) -> list[Fault]:
    """Find masks of an image that cannot be decoded, are empty or do not fit their box.

    Args:
        image: An entry of ``images``.
        annotations: The entries of ``annotations`` that belong to it.
        ann_file: The JSON file, for messages.
    """
    if not (sizes := image_sizes([image])):
        return []
    return faults_of(Path(ann_file), _check_masks(annotations, sizes[image["id"]]))


def _check_image(
    task: tuple[Entry, list[Entry]], ann_file: Path, img_dir: Path | None
) -> list[Fault]:
    image, annotations = task
    faults = check_masks(image, annotations, ann_file)
    if img_dir is not None:
        size = image["height"], image["width"]
        faults += check_image(img_dir / image["file_name"], size)
    return faults


def _check_annotations(content: Entry) -> Iterator[Finding]:
    images, annotations = content["images"], content["annotations"]
    categories = {category["id"] for category in content["categories"]}
    sizes = image_sizes(images)
    for number in repeated(annotation["id"] for annotation in annotations):
        yield "duplicate id", f"several annotations have the id {number}: mmdet stops"
    usable, outlined = 0, []
    for annotation in annotations:
        if annotation["id"] == 0:
            yield (
                "annotation id 0",
                f"{_name(annotation)}: pycocotools takes the object of id 0 for missed; "
                "count from 1",
            )
        if annotation["category_id"] not in categories:
            yield (
                "unknown category",
                f"{_name(annotation)}: category {annotation['category_id']!r} is not among "
                "the categories, and mmdet leaves the object out",
            )
        if (size := sizes.get(annotation["image_id"])) is None:
            continue  # a fault of the image, reported there
        box, mask = _box_fault(annotation, size), mask_fault(annotation, size)
        usable += box is None
        if box or mask:
            for kind, message in filter(None, (box, mask)):
                yield kind, f"{_name(annotation)}: {message}"
        elif isinstance(annotation["segmentation"], list):
            outlined.append(annotation)
    if some := outlined[:: len(outlined) // _SAMPLE + 1]:
        yield from _check_outlines(some, _outlines(some), sizes)
    if annotations and not usable:
        yield "no objects", f"mmdet leaves out all {len(annotations)} annotations"
    elif annotations and all(annotation.get("iscrowd") for annotation in annotations):
        yield "crowds only", "all objects are crowds, which training and scores leave out"
    empty = len(sizes.keys() - set(map(itemgetter("image_id"), annotations)))
    if empty:
        yield "image without objects", f"{empty} of {len(images)} images have no annotation"


def _box_fault(annotation: Entry, size: tuple[int, int]) -> Finding | None:
    """Why mmdet or pycocotools cannot use the box and the numbers of an annotation."""
    box: Any = annotation.get("bbox")
    area = annotation.get("area")
    if area is None or box is None or annotation.get("iscrowd") is None:
        missing = [key for key in ("area", "bbox", "iscrowd") if annotation.get(key) is None]
        return (
            "incomplete annotation",
            f"it lacks {', '.join(missing)}, and mmdet or pycocotools stops",
        )
    if not is_box(box):
        return "no box", f"expected left, top, width and height as bbox, got {box}"
    if not isinstance(area, NUMBER):
        return "incomplete annotation", f"expected the area in pixels, got {area!r}"
    if annotation["iscrowd"] not in CROWD:
        return "incomplete annotation", f"expected iscrowd, 0 or 1, got {annotation['iscrowd']!r}"
    left, top, width, height = box
    if width < 1 or height < 1 or not area > 0:
        return (
            "empty box",
            f"mmdet leaves out objects whose box {box} is below 1 pixel or whose area, {area}, is "
            "0",
        )
    if left >= size[1] or top >= size[0] or left + width <= 0 or top + height <= 0:
        return (
            "box outside the image",
            f"mmdet leaves out objects whose box {box} is outside the image of {size}",
        )
    return None


def _outlines(annotations: list[Entry]) -> NDArray[np.float64]:
    """Left, top, right and bottom of the polygons of each annotation, ``(N, 4)``."""
    lengths = np.array([sum(map(len, one["segmentation"])) for one in annotations]) // 2
    polygons = chain.from_iterable(one["segmentation"] for one in annotations)
    points = _array(polygons, 2 * lengths.sum(), 2)
    starts = np.cumsum(lengths) - lengths
    return np.hstack([f.reduceat(points, starts) for f in (np.minimum, np.maximum)])


def _array(rows: Iterable[Iterable[float]], size: int, width: int) -> NDArray[np.float64]:
    """Array of the numbers in lists, much faster than ``np.array``."""
    return np.fromiter(chain.from_iterable(rows), np.float64, size).reshape(-1, width)


def _check_outlines(
    annotations: list[Entry], outlines: NDArray[np.float64], sizes: dict[Any, tuple[int, int]]
) -> Iterator[Finding]:
    """Find masks far outside their image, and boxes that do not fit the outlines of their masks."""
    low, high = outlines[:, :2], outlines[:, 2:]
    bounds = _array((sizes[one["image_id"]] for one in annotations), 2 * len(annotations), 2)
    boxes = _array((one["bbox"] for one in annotations), 4 * len(annotations), 4)
    margin = 2 + (high - low).max(1) / 10

    def differ(corners: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.any(np.abs(corners - outlines) > margin[:, None], axis=1)

    wrong = differ(np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:])))
    corners = wrong & ~differ(boxes)
    far = is_far_outside(low, high, bounds[:, ::-1])
    for index in np.flatnonzero(far | wrong):
        box, found = annotations[index]["bbox"], np.round(outlines[index], 2).tolist()
        reach = f"{_name(annotations[index])}: the mask reaches from {found[:2]} to {found[2:]}"
        if far[index]:
            yield "polygon", f"{reach}, far outside the image"
        elif max(found) <= 1:
            yield "polygon", f"{reach}; expected pixels, not fractions of the image's size"
        elif corners[index]:
            yield (
                "box as corners",
                f"{reach}, so the box {box} seems to be left, top, right and bottom; expected "
                "left, top, width and height",
            )
        else:
            yield "box", f"{reach}, which the box {box} does not fit"


def _check_masks(annotations: list[Entry], size: tuple[int, int]) -> Iterator[Finding]:
    for annotation in annotations:
        if _box_fault(annotation, size) or mask_fault(annotation, size):
            continue  # faults of the JSON file
        polygons = isinstance(annotation["segmentation"], list)
        try:
            rle = encode_annotation(annotation, size)
        except ValueError as error:
            yield "polygon" if polygons else "run lengths", f"{_name(annotation)}: {error}"
            continue
        if not mask_utils.area(rle):
            yield "empty mask", f"{_name(annotation)}: the mask has no pixel"
            continue
        left, top, width, height = mask_utils.toBbox(rle)
        outline = np.array([[left, top, left + width, top + height]])
        outlines = _outlines([annotation]) if polygons else outline
        yield from _check_outlines([annotation], outlines, {annotation["image_id"]: size})


def _name(annotation: Entry) -> str:
    return f"annotation {annotation['id']} (image {annotation['image_id']})"
