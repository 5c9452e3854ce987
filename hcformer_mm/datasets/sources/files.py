"""Readers of the files of labelme, YOLO, COCO instances and label maps."""

import json
import os
import random
from base64 import b64decode
from collections import defaultdict
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import yaml
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...utils.errors import InputError, cut, some
from ..checks.coco import Entry, check_lists, read_coco, require_keys
from ..checks.faults import faults_of
from ..panoptic_writer import refuse_errors
from .segments import MasksOfImage, ShapesOfImage

Splits = dict[str, list[Any]]

_SPLIT_NAMES = {"training": "train", "validation": "val", "valid": "val"}


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders ``train``, ``val`` and ``test`` below a folder, by split.

    Without both ``train`` and ``val``, the folder itself is a split without a name.
    """
    found = {_split(path.name): path for path in sorted(root.iterdir()) if path.is_dir()}
    kept = {split: path for split, path in found.items() if split in ("train", "val", "test")}
    return kept if {"train", "val"} <= kept.keys() else {"": root}


def _split(name: str) -> str:
    """The name of a split as this project has it."""
    return _SPLIT_NAMES.get(name.lower(), name.lower())


def _images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)


def divide(splits: Splits, fraction: float | None, seed: int) -> Splits:
    """Divide images at random into ``train`` and ``val`` if the source has one split.

    Args:
        splits: The images by split.
        fraction: Share of the images that becomes ``val``; None means 0.2, or the source's splits.
        seed: Seed of the division.

    Raises:
        InputError: There is nothing to divide, or the source has splits and a fraction is given.
    """
    if len(splits) > 1:
        if fraction is not None:
            raise InputError(
                f"expected no fraction for val, since the source has the splits {some(splits)}"
            )
        return splits
    (images,) = splits.values()
    if len(images) < 2:
        raise InputError(
            f"expected at least 2 images to divide into train and val, got {len(images)}; "
            "correct the folder"
        )
    wanted = round((0.2 if fraction is None else fraction) * len(images))
    count = min(max(wanted, 1), len(images) - 1)
    chosen = set(random.Random(seed).sample(range(len(images)), count))
    return {
        split: [one for i, one in enumerate(images) if (i in chosen) == (split == "val")]
        for split in ("train", "val")
    }


def open_masks(images: Path, objects: Path, classes: Path) -> Splits:
    """Find the maps of objects and of classes of all images, which have their names.

    Args:
        images: Folder of the images, or of folders ``train`` and ``val`` of images.
        objects: Folder of the maps of objects, with the same folders inside; 0 is no object.
        classes: Folder of the maps of classes, likewise.

    Raises:
        InputError: An image has no map, or several.
    """
    maps = []
    for root in (objects, classes):
        places = defaultdict[Path, list[Path]](list)
        for path in root.rglob("*"):
            places[path.relative_to(root).with_suffix("")].append(path)
        maps.append((root, places))

    def find(image: Path) -> Iterator[Path]:
        name = image.relative_to(images).with_suffix("")
        for root, places in maps:
            if len(found := places.get(name, [])) != 1:
                raise InputError(
                    f"expected one file {root / name}.* for {image}, got {some(found)}; give the "
                    "map the name of the image"
                )
            yield found[0]

    return {
        split: [
            MasksOfImage(image, image.relative_to(folder).as_posix(), *find(image))
            for image in _images(folder)
        ]
        for split, folder in _split_folders(images).items()
    }


def open_labelme(root: Path) -> Splits:
    """Read labelme's JSON files of a folder, or of folders ``train`` and ``val`` in it.

    Shapes of one label and ``group_id`` are one object.

    Raises:
        InputError: A file is none of labelme's, or a shape has no area.
    """
    return {
        split: [_read_labelme(file, folder) for file in sorted(folder.rglob("*.json"))]
        for split, folder in _split_folders(root).items()
    }


def _read_labelme(file: Path, root: Path) -> ShapesOfImage:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        image = Path(os.path.normpath(file.parent / content["imagePath"].replace("\\", "/")))
        size = int(content["imageHeight"]), int(content["imageWidth"])
        found = [(str(one["label"]), one.get("group_id"), one) for one in content["shapes"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected {file} to be labelme's, with imagePath, imageHeight, imageWidth and shapes "
            f"that have a label, got {type(error).__name__}: {error}; move other files away"
        ) from None
    objects: dict[Any, Entry] = {}
    for number, (label, group, shape) in enumerate(found):
        part = _labelme_part(shape, number, size, file)
        key = number if group is None else (label, str(group))
        entry = {"id": number, "label": label, "iscrowd": 0, "parts": []}
        objects.setdefault(key, entry)["parts"].append(part)
    name = file.relative_to(root).with_suffix(image.suffix).as_posix()
    return ShapesOfImage(image, name, file, list(objects.values()), size)


def _labelme_part(shape: Entry, number: int, size: tuple[int, int], file: Path) -> Any:
    """COCO's segmentation of a shape."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.array(shape["points"], float).reshape(-1, 2)
        if kind == "mask":
            left, top, right, bottom = points.astype(int).ravel()
            mask = np.zeros(size, np.uint8, order="F")
            with Image.open(BytesIO(b64decode(shape["mask"]))) as png:
                mask[top : bottom + 1, left : right + 1] = np.asarray(png) > 0
            return coco_mask.encode(mask)
        if kind == "circle":
            center, edge = points
            circle = shapely.Point(center).buffer(np.hypot(*(edge - center)), quad_segs=32)
            points = shapely.get_coordinates(circle)
        elif kind == "rectangle" and len(points) == 2:
            points = shapely.get_coordinates(shapely.box(*points.ravel()))
        if kind in ("polygon", "rectangle", "circle"):
            return [points.ravel().tolist()]
    except (ValueError, KeyError, TypeError, OSError) as error:
        kind = f"a {kind} that cannot be read ({error})"
    raise InputError(
        f"{file}: expected a polygon, a rectangle, a circle or a mask as shape {number}, got "
        f"{kind}; draw it anew, or delete it"
    )


def open_yolo(file: Path) -> tuple[Splits, dict[str, bool]]:
    """Read a set for YOLO's segmentation: ``data.yaml``, ``images/`` and ``labels/``.

    A split is a folder of images, a text file that lists them, or several of both.

    Each line of a label file is an object: the number of its class, and its outline in fractions of
    the image's width and height.

    Returns:
        The images by split, and the names of the classes, which YOLO takes for things.

    Raises:
        InputError: A file has another form.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        names = content["names"]
        names = names.items() if isinstance(names, dict) else enumerate(names)
        names = {int(number): str(name) for number, name in names}
        places = {
            split: [
                _yolo_place(file, content.get("path") or "", one)
                for one in ([given] if isinstance(given, str) else given)
            ]
            for split in ("train", "val", "test")
            if (given := content.get(split))
        }
        if not places:
            raise KeyError("train")
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"expected {file} to be YOLO's, with names, train and val, got "
            f"{type(error).__name__}: {error}"
        ) from None
    splits = {
        split: [_read_yolo(*image, names) for place in given for image in _yolo_images(place)]
        for split, given in places.items()
    }
    return splits, dict.fromkeys(names.values(), True)


def _yolo_place(file: Path, base: str, given: str) -> Path:
    """The folder or list of images of a split, which exports give from several places."""
    root, given = file.parent.absolute(), given.replace("\\", "/")
    for place in (root / base / given, root / given, root / given.removeprefix("../")):
        if place.is_dir() or place.is_file():
            return place
    raise InputError(
        f"expected a folder or a list of images for {given!r} of {file}, got none at "
        f"{root / base / given}; correct path, train or val there"
    )


def _yolo_images(place: Path) -> list[tuple[Path, str]]:
    """Images in a folder, or in a text file of paths from its own folder, and their names."""
    images = _images(place)
    if place.is_file():
        lines = place.read_text("utf-8-sig", "surrogateescape").replace("\\", "/").splitlines()
        images = [Path(os.path.normpath(place.parent / line)) for line in lines if line.strip()]
        place = Path(os.path.commonpath([image.parent for image in images] or [place]))
    return [(image, image.relative_to(place).as_posix()) for image in images]


def _read_yolo(image: Path, name: str, names: Mapping[float, str]) -> ShapesOfImage:
    before, images, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    file = Path(f"{before}{os.sep}labels{os.sep}{after}" if images else image).with_suffix(".txt")
    shapes = []
    lines = file.read_text("utf-8-sig", "replace").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            first, *outline = map(float, line.split())
            label, points = names[first], np.reshape(outline, (-1, 2))
            # Tools round, and Ultralytics accepts as much.
            fine = len(points) >= 3 and np.abs(points - 0.5).max() <= 0.51
        except (ValueError, KeyError):
            fine = False
        if not fine:
            raise InputError(
                f"{file}: expected the number of a class, {some(names)}, and at least three points "
                f"from 0 to 1 in line {number}, got {cut(line, 60)!r}; correct the line (boxes "
                "are no segments)"
            )
        shapes.append({"id": number, "label": label, "iscrowd": 0, "parts": [points]})
    return ShapesOfImage(image, name, file, shapes)


def open_coco(root: Path, *, ignore_crowds: bool = False) -> tuple[Splits, dict[str, bool]]:
    """Read a set of COCO instances as CVAT exports it.

    Args:
        root: Folder with ``annotations/instances_<split>.json`` and the images in ``images/``,
            ``images/<split>/`` or ``<split>/``.
        ignore_crowds: Whether ``iscrowd`` is taken for 0: CVAT sets it for all that is drawn with
            the brush.

    Returns:
        The images by split; and the classes of all files in order, and whether they are things, by
        ``isthing`` of the categories, or else yes.

    Raises:
        InputError: A file has another form, or an annotation is of an unknown image or category.
    """
    splits = defaultdict[str, list[Any]](list)
    kinds: dict[str, bool] = {}
    for file in sorted((root / "annotations").glob("instances_*.json")):
        content = read_coco(file)
        require_keys(content, file, "annotations", ("id", "image_id", "category_id"))
        refuse_errors(faults_of(file, check_lists(content)), "check_instances.py")
        names = {one["id"]: one["name"] for one in content["categories"]}
        kinds |= {one["name"]: bool(one.get("isthing", 1)) for one in content["categories"]}
        shapes: dict[Any, list[Entry]] = {one["id"]: [] for one in content["images"]}
        for one in content["annotations"]:
            crowd = 0 if ignore_crowds else one.get("iscrowd", 0)
            try:
                shape = {"id": one["id"], "label": names[one["category_id"]], "iscrowd": crowd}
                shapes[one["image_id"]].append(shape | {"parts": [one.get("segmentation")]})
            except KeyError:
                raise InputError(
                    f"{file}: expected the annotation {one['id']} to have an image and a category "
                    f"of the file, got {one['image_id']} and {one['category_id']}; correct it"
                ) from None
        split = file.stem.removeprefix("instances_")
        for one in content["images"]:
            name = one["file_name"].replace("\\", "/")
            image, size = _coco_image(root, split, name), (one["height"], one["width"])
            found = ShapesOfImage(image, name, file, shapes[one["id"]], size)
            splits[_split(split)].append(found)
    if not splits:
        raise InputError(f"expected instances_*.json in {root / 'annotations'}, got none")
    return splits, kinds


def _coco_image(root: Path, split: str, name: str) -> Path:
    places = [root / folder / name for folder in (f"images/{split}", "images", split)]
    return next((place for place in places if place.is_file()), places[1])
