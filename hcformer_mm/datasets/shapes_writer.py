"""Write the Shapes dataset as COCO panoptic, COCO instance and label-map files."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from ..structures.panoptic import Panoptic
from .panoptic_writer import AnnotatedImage, coco_categories, write_panoptic_set
from .shapes import METAINFO
from .shapes_generator import GENERATOR_VERSION, Scene, render_scene

SPLITS = ("train", "val")
NUM_TRAIN, NUM_VAL = 800, 100
SEED = 0
SIZE = (240, 320)


def write_shapes(
    out: str | Path,
    *,
    num_train: int = NUM_TRAIN,
    num_val: int = NUM_VAL,
    seed: int = SEED,
    size: tuple[int, int] = SIZE,
    workers: int = 2,
    overwrite: bool = False,
) -> None:
    """Render the Shapes dataset into a folder, which appears only when it is complete.

    Every image has its own random state, from ``(seed, split, index)``: labels, annotations and
    uncompressed images are bit-identical on every machine and for any number of workers, and images
    of a split stay the same when the split grows. JPEG encoders differ a little.

    Args:
        out: The folder to create.
        num_train: Images of the training split.
        num_val: Images of the validation split.
        seed: Seed in [0, 2**32).
        size: Mean height and width in pixels, from which images differ by up to 8 %.
        workers: Processes that render.
        overwrite: Whether to replace ``out`` if it holds a panoptic data set.

    Raises:
        FileExistsError: ``out`` exists and may not be replaced.
        ValueError: A number is out of its range.
    """
    for name, value, least in (
        ("num_train", num_train, 1),
        ("num_val", num_val, 1),
        ("seed", seed, 0),
        ("workers", workers, 1),
    ):
        if value < least:
            raise ValueError(f"expected {name} of at least {least}, got {value}")
    if seed >= 2**32:
        raise ValueError(f"expected seed below 2**32, got {seed}")
    things, stuff = METAINFO["thing_classes"], METAINFO["stuff_classes"]
    write_panoptic_set(
        out,
        {
            split: [(seed, number, index) for index in range(count)]
            for number, (split, count) in enumerate(zip(SPLITS, (num_train, num_val), strict=True))
        },
        partial(_render, size=size),
        coco_categories(things, stuff, METAINFO["palette"]),
        info={split: _info(split, seed, size) for split in SPLITS},
        workers=workers,
        overwrite=overwrite,
    )


def is_standard(root: str | Path) -> bool:
    """Return whether a folder holds the dataset that this version renders by default.

    Raises:
        FileNotFoundError: ``root`` holds no Shapes dataset.
    """
    for split, count in zip(SPLITS, (NUM_TRAIN, NUM_VAL), strict=True):
        content = json.loads(Path(root, "annotations", f"panoptic_{split}.json").read_text())
        if len(content["images"]) != count or content["info"] != _info(split, SEED, SIZE):
            return False
    return True


def _info(split: str, seed: int, size: tuple[int, int]) -> dict[str, object]:
    """``info`` of the annotation files."""
    return {
        "description": f"Shapes, {split} split",
        "version": GENERATOR_VERSION,
        "seed": seed,
        "size": list(size),
    }


def _render(state: tuple[int, int, int], size: tuple[int, int]) -> AnnotatedImage:
    """Render the image of a random state: seed, number of the split and index of the image."""
    scene = render_scene(state, size=size)
    ids = _segment_ids(scene, state[-1])
    segments = np.zeros(scene.image.shape[:2], np.int64)
    for number, segment in zip(ids, scene.segments, strict=True):
        segments[segment.mask] = number
    labels = (segment.label for segment in scene.segments)
    panoptic = Panoptic(segments, dict(zip(ids, labels, strict=True)))
    return AnnotatedImage(f"{state[-1]:06d}.jpg", scene.image, panoptic)


def _segment_ids(scene: Scene, index: int) -> list[int]:
    """Return segment ids, unique in their image, whose colors resemble those of their classes.

    The high four bits of each channel come from the class color; the low bits of all three count.
    """
    ids = []
    for number, segment in enumerate(scene.segments):
        count = 16 * index + number
        red, green, blue = (channel & 0xF0 for channel in METAINFO["palette"][segment.label])
        red, green, blue = red | count & 15, green | count >> 4 & 15, blue | count >> 8 & 15
        ids.append(red + 256 * green + 256 * 256 * blue)
    return ids
