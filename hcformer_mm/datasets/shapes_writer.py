"""Writes the Shapes dataset to disk in COCO panoptic, COCO instance and semantic-PNG form."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.utils import track_parallel_progress, track_progress
from PIL import Image
from pycocotools import mask as coco_mask

from .shapes import METAINFO
from .shapes_generator import GENERATOR_VERSION, Scene, render_scene

SPLITS = ("train", "val")
NUM_TRAIN, NUM_VAL = 800, 100
SEED = 0
SIZE = (240, 320)
_JPEG_QUALITY = 90
_MARKER = Path("annotations", "panoptic_train.json")


@dataclass(frozen=True)
class _Task:
    """What one worker needs to write one image."""

    root: Path
    split: str
    index: int
    seed: int
    size: tuple[int, int]


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

    Every image has a random state of its own, from ``(seed, split, index)``: labels and
    annotations are bit-identical on every machine and for any number of workers, and the first
    images of a split stay the same when the split grows. Images are so too before they are
    compressed; JPEG encoders differ a little.

    Args:
        out (str | Path): The folder to create.
        num_train (int): Images of the training split.
        num_val (int): Images of the validation split.
        seed (int): Seed in [0, 2**32).
        size (tuple[int, int]): Height and width about which the images' own vary by up to 8 %.
        workers (int): Processes that render.
        overwrite (bool): Replace ``out`` if it holds a Shapes dataset.

    Raises:
        FileExistsError: If ``out`` exists and may not be replaced.
        ValueError: If a number is out of its range.
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
    out = Path(out).expanduser().absolute()
    _check_target(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling of the target is on the same file system, so that it can be renamed; whatever is
    # left in it, a replaced dataset included, goes with it, also after an error or Ctrl-C.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        root = Path(scratch, "new")
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(root, split, count, seed=seed, size=size, workers=workers)
        if out.exists():
            out.rename(Path(scratch, "old"))
        root.rename(out)


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Raise unless ``out`` is free or a Shapes dataset that the caller gave up."""
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"expected a new folder, but {out} exists; choose another one, or ask to overwrite it"
        )
    if not (out / _MARKER).is_file():
        raise FileExistsError(
            f"expected a Shapes dataset to overwrite, but {out} has no {_MARKER}; "
            "remove it yourself if it is not needed, or choose another folder"
        )


def is_standard(root: str | Path) -> bool:
    """Whether a folder holds the set that this version renders by default.

    Raises:
        FileNotFoundError: If ``root`` holds no Shapes dataset.
    """
    for split, count in zip(SPLITS, (NUM_TRAIN, NUM_VAL), strict=True):
        content = json.loads(Path(root, "annotations", f"panoptic_{split}.json").read_text())
        if len(content["images"]) != count or content["info"] != _info(split, SEED, SIZE):
            return False
    return True


def _info(split: str, seed: int, size: tuple[int, int]) -> dict[str, object]:
    """What the annotation files say of where their images come from."""
    return {
        "description": f"Shapes, {split} split",
        "version": GENERATOR_VERSION,
        "seed": seed,
        "size": list(size),
    }


def _write_split(
    root: Path, split: str, count: int, *, seed: int, size: tuple[int, int], workers: int
) -> None:
    """Write the images of a split, its label maps and its annotation files."""
    for folder in (split, f"annotations/panoptic_{split}", f"semantic/{split}"):
        (root / folder).mkdir(parents=True)
    tasks = [_Task(root, split, index, seed, size) for index in range(count)]
    if workers == 1:
        records = track_progress(_write_scene, tasks)
    else:
        records = track_parallel_progress(_write_scene, tasks, workers, chunksize=4)
    info = _info(split, seed, size)
    images = [image for image, _, _ in records]
    panoptic = {
        "info": info,
        "images": images,
        "annotations": [annotation for _, annotation, _ in records],
        "categories": _categories(),
    }
    instances = {
        "info": info,
        "images": images,
        "annotations": [
            {"id": number, **annotation}
            for number, annotation in enumerate(
                (a for _, _, many in records for a in many), start=1
            )
        ],
        "categories": [c for c in _categories() if c["isthing"]],
    }
    for name, content in (("panoptic", panoptic), ("instances", instances)):
        (root / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))


def _write_scene(task: _Task) -> tuple[dict, dict, list[dict]]:
    """Render one scene and write its files.

    Returns:
        tuple[dict, dict, list[dict]]: Its COCO image, panoptic annotation and instance annotations
        (without ids).
    """
    scene = render_scene((task.seed, SPLITS.index(task.split), task.index), size=task.size)
    name, image_id = f"{task.index:06d}", task.index + 1
    height, width = scene.image.shape[:2]
    Image.fromarray(scene.image).save(task.root / task.split / f"{name}.jpg", quality=_JPEG_QUALITY)
    Image.fromarray(_semantic_map(scene)).save(task.root / "semantic" / task.split / f"{name}.png")
    ids = _segment_ids(scene, task.index)
    Image.fromarray(_panoptic_map(scene, ids)).save(
        task.root / "annotations" / f"panoptic_{task.split}" / f"{name}.png"
    )
    segments_info, instances = [], []
    for segment_id, segment in zip(ids, scene.segments, strict=True):
        rle = coco_mask.encode(np.asfortranarray(segment.mask.astype(np.uint8)))
        entry = {
            "category_id": segment.label + 1,
            "iscrowd": 0,
            "bbox": coco_mask.toBbox(rle).tolist(),
            "area": int(coco_mask.area(rle)),
        }
        segments_info.append({"id": segment_id, **entry})
        if segment.is_thing:
            rle["counts"] = rle["counts"].decode("ascii")
            instances.append({"image_id": image_id, "segmentation": rle, **entry})
    image = {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
    panoptic = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments_info}
    return image, panoptic, instances


def _semantic_map(scene: Scene) -> np.ndarray:
    """Labels (H, W), uint8, of all pixels."""
    labels = np.full(scene.image.shape[:2], 255, np.uint8)
    for segment in scene.segments:
        labels[segment.mask] = segment.label
    return labels


def _segment_ids(scene: Scene, index: int) -> list[int]:
    """Panoptic ids, unique in their image, that look like the colors of their classes.

    The high four bits of a channel are the class's; the low bits of all three, together, count.
    """
    ids = []
    for number, segment in enumerate(scene.segments):
        count = 16 * index + number
        red, green, blue = (channel & 0xF0 for channel in METAINFO["palette"][segment.label])
        red, green, blue = red | count & 15, green | count >> 4 & 15, blue | count >> 8 & 15
        ids.append(red + 256 * green + 256 * 256 * blue)
    return ids


def _panoptic_map(scene: Scene, ids: list[int]) -> np.ndarray:
    """The ids (H, W, 3), uint8, as COCO spreads them over red, green and blue."""
    colors = np.zeros_like(scene.image)
    for segment_id, segment in zip(ids, scene.segments, strict=True):
        colors[segment.mask] = (segment_id & 255, segment_id >> 8 & 255, segment_id >> 16)
    return colors


def _categories() -> list[dict]:
    """COCO categories, numbered from 1 in the order of the labels."""
    things = METAINFO["thing_classes"]
    return [
        {
            "id": label + 1,
            "name": name,
            "supercategory": "thing" if name in things else "stuff",
            "isthing": int(name in things),
            "color": list(color),
        }
        for label, (name, color) in enumerate(
            zip(METAINFO["classes"], METAINFO["palette"], strict=True)
        )
    ]
