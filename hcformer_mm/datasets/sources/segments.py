"""Shapes and label maps of an image as panoptic segments, and their classes."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.util import map_array

from ...evaluation.functional.coco_masks import encode_annotation
from ...evaluation.functional.superpixels import overlaps
from ...structures.panoptic import Panoptic
from ...utils.errors import InputError, reason
from ..checks.coco import Entry
from ..checks.files import UnreadableError, image_size
from ..panoptic_writer import AnnotatedImage
from .classes import VOID_VALUES, ClassMap

# Below are the ids of stuff: there are at most 255 classes.
_FIRST_OBJECT = 256


@dataclass(frozen=True)
class ShapesOfImage:
    """Outlines and masks of an image.

    Attributes:
        image: The image.
        file_name: Its name in the new set.
        source: The file of the annotations, for messages.
        shapes: One dict for each object or region: ``id`` for messages, ``label``, ``iscrowd`` and
            ``parts``, each a COCO segmentation, or points ``(N, 2)`` of a polygon as fractions of
            the image's width and height.
        size: Height and width for which they were drawn, in pixels; None if unknown.
    """

    image: Path
    file_name: str
    source: Path
    shapes: list[Entry]
    size: tuple[int, int] | None = None


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
    All shapes of a class of stuff make one segment. Void is drawn like stuff.

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
        label = classes.label(shape["label"], one.source)
        parts = [
            [(part * size[::-1]).ravel().tolist()] if isinstance(part, np.ndarray) else part
            for part in shape["parts"]
        ]
        try:
            rle = coco_mask.merge(
                [encode_annotation({**shape, "segmentation": part}, size) for part in parts]
            )
        except ValueError as error:
            raise InputError(f"{one.source}: {error}") from None
        label = -1 if label is None else label  # whose segment, 0, is void
        is_thing = 0 <= label < len(classes.things)
        level = 0 if not is_thing else 1 if shape["iscrowd"] else 2
        layers.append((level, -int(coco_mask.area(rle)), label, rle))
    segments = np.zeros(size, np.int32)
    if background is not None:
        segments += classes.names.index(background) + 1
    labels, crowds = _stuff(classes), set[int]()
    for number, layer in enumerate(sorted(layers, key=itemgetter(0, 1)), start=_FIRST_OBJECT):
        level, _, label, rle = layer
        segments[coco_mask.decode(rle) > 0] = number if level else label + 1
        labels[number] = label
        if level == 1:
            crowds.add(number)
    return AnnotatedImage(one.file_name, one.image, Panoptic(segments, labels), frozenset(crowds))


def paint_masks(one: MasksOfImage, classes: ClassMap) -> AnnotatedImage:
    """Read the masks of an image, where each object has the class of most of its pixels.

    Pixels of stuff that belong to no object are stuff; such pixels of things become void.

    Raises:
        InputError: The image or a mask is wrong; the message names file and id.
    """
    size = image_size(one.image)
    numbers, values = read_map(one.objects), read_map(one.classes)
    for path, pixels in ((one.objects, numbers), (one.classes, values)):
        _check_size(path, pixels.shape, size, one.image)
    keys = np.unique(values)
    known = [classes.label(key, one.classes) for key in keys.tolist()]
    labels = map_array(values, keys, np.array([-1 if label is None else label for label in known]))
    table = overlaps(numbers, labels, ignore=numbers == 0)
    objects = table.segment_labels[table.majority()].tolist()
    for number, label in zip(table.cluster_labels.tolist(), objects, strict=True):
        if not 0 <= label < len(classes.things):
            raise InputError(
                f"{one.objects}: expected a class of things at most pixels of the object {number}, "
                f"got {classes.names[label] if label >= 0 else 'void'} in {one.classes}; correct "
                "one of both"
            )
    segments = np.where(labels >= len(classes.things), labels + 1, 0)
    inside = numbers > 0
    segments[inside] = _FIRST_OBJECT + np.searchsorted(table.cluster_labels, numbers[inside])
    ids = _stuff(classes) | dict(enumerate(objects, start=_FIRST_OBJECT))
    return AnnotatedImage(one.file_name, one.image, Panoptic(segments, ids))


def _stuff(classes: ClassMap) -> dict[int, int]:
    """Labels of the segments of stuff, whose ids are labels plus one."""
    return {label + 1: label for label in range(len(classes.things), len(classes.names))}


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
        if (suffix := path.suffix.lower()) == ".npz":
            with np.load(path) as arrays:
                (pixels,) = arrays.values()
        elif suffix == ".npy":
            pixels = np.load(path)
        elif suffix in (".tif", ".tiff"):
            pixels = tifffile.imread(path)
        else:
            with Image.open(path) as image:
                pixels = np.asarray(image)
        whole = pixels.astype(np.int64)
    except Exception as error:  # decoders raise any kind
        raise InputError(
            f"expected one array of numbers in {path}, got {reason(error)}; save "
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
