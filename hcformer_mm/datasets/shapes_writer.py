"""Write the Shapes dataset as COCO panoptic, COCO instance and label-map files."""

import json
import tempfile
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as coco_mask

from ..utils.progress import run_each
from .shapes import METAINFO
from .shapes_generator import GENERATOR_VERSION, Scene, render_scene

SPLITS = ("train", "val")
NUM_TRAIN, NUM_VAL = 800, 100
SEED = 0
SIZE = (240, 320)
_JPEG_QUALITY = 90
_MARKER = Path("annotations", "panoptic_train.json")


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
        overwrite: Whether to replace ``out`` if it holds a Shapes dataset.

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
    out = Path(out).expanduser().absolute()
    _check_target(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling folder is on the target's file system, so its content can be renamed to the target.
    # It is deleted in the end, with a replaced dataset in it, also after an error or Ctrl-C.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        root = Path(scratch, "new")
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(root, split, count, seed=seed, size=size, workers=workers)
        if out.exists():
            out.rename(Path(scratch, "old"))
        root.rename(out)


def _check_target(out: Path, *, overwrite: bool) -> None:
    """Raise unless ``out`` is free, or a Shapes dataset that may be overwritten."""
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"expected a new folder, but {out} exists; choose another one, or set overwrite"
        )
    if not (out / _MARKER).is_file():
        raise FileExistsError(
            f"expected a Shapes dataset to overwrite, but {out} has no {_MARKER}; "
            "remove it yourself if it is not needed, or choose another folder"
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


def _write_split(
    root: Path, split: str, count: int, *, seed: int, size: tuple[int, int], workers: int
) -> None:
    """Write the images, label maps and annotation files of a split."""
    for folder in (split, f"annotations/panoptic_{split}", f"semantic/{split}"):
        (root / folder).mkdir(parents=True)
    write = partial(_write_scene, root=root, split=split, seed=seed, size=size)
    records = run_each(write, range(count), workers, split)
    images, panoptic, instances = zip(*records, strict=True)
    categories = _categories()
    things = [category for category in categories if category["isthing"]]
    numbered = [{"id": i, **one} for i, one in enumerate(chain.from_iterable(instances), start=1)]
    for name, annotations, listed in (
        ("panoptic", panoptic, categories),
        ("instances", numbered, things),
    ):
        content = {
            "info": _info(split, seed, size),
            "images": images,
            "annotations": annotations,
            "categories": listed,
        }
        (root / "annotations" / f"{name}_{split}.json").write_text(json.dumps(content))


def _write_scene(
    index: int, *, root: Path, split: str, seed: int, size: tuple[int, int]
) -> tuple[dict, dict, list[dict]]:
    """Render one scene and write its files.

    Returns:
        Its COCO image, panoptic annotation and instance annotations, the latter without ids.
    """
    scene = render_scene((seed, SPLITS.index(split), index), size=size)
    name, image_id = f"{index:06d}", index + 1
    height, width = scene.image.shape[:2]
    Image.fromarray(scene.image).save(root / split / f"{name}.jpg", quality=_JPEG_QUALITY)
    labels = _map(scene, [segment.label for segment in scene.segments])
    Image.fromarray(labels.astype(np.uint8)).save(root / "semantic" / split / f"{name}.png")
    ids = _segment_ids(scene, index)
    Image.fromarray(id2rgb(_map(scene, ids))).save(
        root / "annotations" / f"panoptic_{split}" / f"{name}.png"
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


def _map(scene: Scene, values: list[int]) -> np.ndarray:
    """Return the value of the segment at every pixel, ``(H, W)`` int64."""
    pixels = np.zeros(scene.image.shape[:2], np.int64)
    for segment, value in zip(scene.segments, values, strict=True):
        pixels[segment.mask] = value
    return pixels


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


def _categories() -> list[dict]:
    """COCO categories, with ids from 1 in the order of the labels."""
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
