"""Shapes and label maps of an image as panoptic segments, and their classes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ...evaluation.functional.coco_masks import encode_annotation
from ...structures.panoptic import Panoptic
from ...utils.errors import InputError
from ..checks.coco import Entry
from ..checks.files import UnreadableError, image_size
from ..panoptic_writer import AnnotatedImage
from .classes import VOID_VALUES, ClassMap


@dataclass(frozen=True)
class ShapesOfImage:
    """Outlines and masks of an image.

    Attributes:
        image: The image.
        file_name: Its name in the new set.
        source: The file of the annotations, for messages.
        shapes: One dict for each object or region: ``id`` for messages, ``label``, ``iscrowd`` and
            ``parts``, each a COCO segmentation.
        size: Height and width for which they were drawn, in pixels; None if unknown.
        relative: Whether outlines are fractions of the image's width and height.
    """

    image: Path
    file_name: str
    source: Path
    shapes: list[Entry]
    size: tuple[int, int] | None = None
    relative: bool = False


@dataclass(frozen=True)
class MasksOfImage:
    """An image, its name in the new set, and the files of its objects and of its classes."""

    image: Path
    file_name: str
    objects: Path
    classes: Path


def paint_shapes(one: ShapesOfImage, classes: ClassMap, background: str | None) -> AnnotatedImage:
    """Draw the shapes of an image over each other: stuff, then crowds, then single objects.

    Among each of them smaller shapes lie on larger ones, and of equal ones the last lies on top.
    All shapes of a class of stuff make one segment.

    Args:
        one: The shapes.
        classes: Their classes.
        background: Class of stuff of the remaining pixels; None leaves them void.

    Raises:
        InputError: The image, a class or a shape is wrong; the message names file and id.
    """
    try:
        size = image_size(one.image)
    except UnreadableError as error:
        raise InputError(f"{one.source}: {error}; correct its name, or leave it out") from None
    _check_size(one.source, one.size or size, size, one.image)
    layers = []
    for shape in one.shapes:
        if (label := classes.label(shape["label"], one.source)) is None:
            continue
        try:
            parts = [
                encode_annotation({"id": shape["id"], "segmentation": part}, size)
                for part in (_scaled(shape["parts"], size) if one.relative else shape["parts"])
            ]
        except ValueError as error:
            raise InputError(f"{one.source}: {error}") from None
        rle = coco_mask.merge(parts)
        level = 0 if label >= len(classes.things) else 1 if shape["iscrowd"] else 2
        layers.append((level, -int(coco_mask.area(rle)), label, rle))
    # Stuff has the ids 1 to 255, objects those from 256 on.
    segments = np.zeros(size, np.int32)
    if background is not None:
        segments += _names(classes).index(background) + 1
    objects, crowds = {}, set()
    for number, layer in enumerate(sorted(layers, key=itemgetter(0, 1)), start=256):
        level, _, label, rle = layer
        segments[coco_mask.decode(rle) > 0] = number if level else label + 1
        objects[number] = label
        if level == 1:
            crowds.add(number)
    return _annotated(one, segments, objects, frozenset(crowds))


def paint_masks(one: MasksOfImage, classes: ClassMap) -> AnnotatedImage:
    """Read the masks of an image, where each object has the class of most of its pixels.

    Pixels of stuff that belong to no object are stuff; such pixels of things become void.

    Raises:
        InputError: The image or a mask is wrong; the message names file and id.
    """
    size = image_size(one.image)
    numbers, values = read_map(one.objects), read_map(one.classes)
    for path, found in ((one.objects, numbers), (one.classes, values)):
        _check_size(path, found.shape, size, one.image)
    keys, indices = np.unique(values, return_inverse=True)
    known = [classes.label(key, one.classes) for key in keys.tolist()]
    labels = np.array([-1 if label is None else label for label in known])[indices.reshape(size)]
    num_things, names = len(classes.things), ("void", *_names(classes))
    segments = np.where(labels >= num_things, labels + 1, 0)
    inside = numbers > 0
    pairs, counts = np.unique(numbers[inside] * len(names) + labels[inside] + 1, return_counts=True)
    objects = {}
    for pair in pairs[np.argsort(counts)].tolist():  # the most frequent class comes last
        number, label = divmod(pair, len(names))
        objects[number + 255] = label - 1
    for number, label in objects.items():
        if not 0 <= label < num_things:
            raise InputError(
                f"{one.objects}: expected a class of things at most pixels of the object "
                f"{number - 255}, got {names[label + 1]} in {one.classes}; correct one of both"
            )
    segments[inside] = numbers[inside] + 255
    return _annotated(one, segments, objects)


def _names(classes: ClassMap) -> list[str]:
    return [*classes.things.values(), *classes.stuff.values()]


def _annotated(
    one: ShapesOfImage | MasksOfImage,
    segments: NDArray[np.integer[Any]],
    objects: Mapping[int, int],
    crowds: frozenset[int] = frozenset(),
) -> AnnotatedImage:
    """Leave out objects without a pixel, and add the stuff, whose ids are labels plus one."""
    labels = {i: objects.get(i, i - 1) for i in np.unique(segments).tolist() if i}
    panoptic = Panoptic(segments, labels)
    return AnnotatedImage(one.file_name, one.image, panoptic, crowds & labels.keys())


def infer_from_masks(images: Iterable[MasksOfImage]) -> ClassMap:
    """Take values for things if most of their pixels belong to objects, and 0 and 255 for void."""
    pixels: Counter[int] = Counter()
    for one in images:
        numbers, values = read_map(one.objects), read_map(one.classes)
        _check_size(one.objects, numbers.shape, values.shape, one.classes)
        for sign, part in ((1, values[numbers > 0]), (-1, values[numbers == 0])):
            for value, count in zip(*np.unique(part, return_counts=True), strict=True):
                pixels[int(value)] += sign * int(count)
    names = {value: f"class {value}" for value in sorted(pixels.keys() - VOID_VALUES)}
    things = {value: name for value, name in names.items() if pixels[value] > 0}
    stuff = {value: name for value, name in names.items() if value not in things}
    return ClassMap(things, stuff, VOID_VALUES)


def infer_from_shapes(images: Iterable[ShapesOfImage], known: Mapping[str, bool]) -> ClassMap:
    """Take every class for things, unless the source says which are.

    Args:
        images: All images.
        known: Classes in the order of the source, and whether they are things; empty if unknown.
    """
    labels = sorted({shape["label"] for one in images for shape in one.shapes})
    kinds = known or dict.fromkeys(labels, True)
    things = {name: name for name, is_thing in kinds.items() if is_thing}
    return ClassMap(things, {name: name for name in kinds if name not in things})


def read_map(path: Path) -> NDArray[np.int64]:
    """Whole numbers ``(H, W)`` of a PNG, TIFF, npy or npz file; of a palette, its indices.

    Raises:
        InputError: The file has no such numbers, or an npz file has several arrays.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                (pixels,) = arrays.values()
        elif path.suffix == ".npy":
            pixels = np.load(path)
        elif path.suffix in (".tif", ".tiff"):
            pixels = tifffile.imread(path)
        else:
            with Image.open(path) as image:
                pixels = np.asarray(image)
        whole = pixels.astype(np.int64)
    except Exception as error:  # decoders raise any kind
        raise InputError(
            f"expected one array of numbers in {path}, got {error or type(error).__name__}; save "
            "the map as a PNG of 8 or 16 bits, or alone in an npy or npz file"
        ) from error
    if pixels.ndim != 2 or (whole != pixels).any() or whole.min(initial=0) < 0:
        raise InputError(
            f"expected whole numbers from 0 on of shape (H, W) in {path}, got {pixels.dtype} of "
            f"shape {pixels.shape}; save the number of the object or class of each pixel"
        )
    return whole


def _check_size(source: Path, drawn: tuple[int, ...], size: tuple[int, ...], image: Path) -> None:
    if tuple(drawn) != tuple(size):
        raise InputError(
            f"{source}: expected the height and width {tuple(size)} of {image}, got "
            f"{tuple(drawn)}; take the image that was annotated"
        )


def _scaled(parts: list[Any], size: tuple[int, int]) -> list[Any]:
    """Polygons in pixels, given their fractions of the image's size."""
    scale = np.array(size[::-1])
    return [
        [(np.reshape(polygon, (-1, 2)) * scale).ravel().tolist() for polygon in part]
        for part in parts
    ]
