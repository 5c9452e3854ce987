"""Write a data set as COCO panoptic, COCO instance and label-map files."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from panopticapi.evaluation import OFFSET, VOID
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as coco_mask
from skimage.util import map_array

from ..structures.arrays import Mask, RGBImage
from ..structures.palette import distinct_colors
from ..structures.panoptic import Panoptic
from ..utils.atomic_write import check_different, replacing
from ..utils.errors import InputError, some
from ..utils.progress import run_each
from .checks.coco import Entry, read_coco, repeated
from .checks.faults import Fault
from .checks.files import image_size
from .checks.panoptic import check_panoptic_json, check_panoptic_png, read_segments

T = TypeVar("T")

_JPEG_QUALITY = 90
_VOID_LABEL = 255


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its segments.

    Attributes:
        file_name: Path of the image below the folder of its split, with a suffix.
        image: Pixels ``(H, W, 3)``, or a file, which is copied.
        panoptic: Segments ``(H, W)``. Those of ``categories`` have ids from 1 to 256³ - 1 and are
            listed in its order, if they have pixels; the pixels of all other ids are void.
        crowds: Ids of the segments that are groups of objects of one class.
    """

    file_name: str
    image: RGBImage | Path
    panoptic: Panoptic
    crowds: frozenset[int] = frozenset()


def coco_categories(
    things: Sequence[str], stuff: Sequence[str], palette: Sequence[Sequence[int]] | None = None
) -> list[Entry]:
    """Return COCO's categories, things first, with ids from 1 in the order of the labels.

    Args:
        things: Names of the classes with countable objects.
        stuff: Names of the other classes.
        palette: RGB color of each class; None for distinct ones.
    """
    names = (*things, *stuff)
    colors = distinct_colors(len(names)).tolist() if palette is None else palette
    return [
        {
            "id": label + 1,
            "name": name,
            "supercategory": "thing" if label < len(things) else "stuff",
            "isthing": int(label < len(things)),
            "color": list(color),
        }
        for label, (name, color) in enumerate(zip(names, colors, strict=True))
    ]


def write_panoptic_set(
    out: str | Path,
    splits: Mapping[str, Sequence[T]],
    load: Callable[[T], AnnotatedImage],
    categories: Sequence[Entry],
    *,
    info: Mapping[str, Entry] | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> dict[str, Entry]:
    """Write a data set into a folder, which appears only when it is complete.

    The folder holds the images ``<split>/``, their segments ``annotations/panoptic_<split>.json``
    and ``annotations/panoptic_<split>/*.png``, the things ``annotations/instances_<split>.json``,
    and label maps ``semantic/<split>/*.png`` of 8 bits, where 255 is void.

    Args:
        out: The folder to create.
        splits: What ``load`` takes for each image, by the name of the split.
        load: Makes or reads an image; pickled if there are several workers.
        categories: Classes in the order of their labels, as :func:`coco_categories` returns them.
        info: COCO's ``info`` of each split.
        workers: Processes that load and write.
        overwrite: Whether to replace ``out`` if it holds a data set of this form.

    Returns:
        Content of the panoptic JSON file of each split.

    Raises:
        FileExistsError: ``out`` exists and may not be replaced.
        ValueError: A split has no image, the classes are none or too many, two images of a split
            have one name but for the suffix, a name leads out of its folder, or the segments of an
            image do not fit it.
    """
    if not 0 < len(categories) <= _VOID_LABEL:
        raise InputError(
            f"expected 1 to {_VOID_LABEL} classes, which label maps of 8 bits hold, got "
            f"{len(categories)}"
        )
    for split, tasks in splits.items():
        if not tasks:
            raise InputError(f"expected images for the split {split}, got none")
    contents = {}
    with _new_folder(Path(out).expanduser().absolute(), overwrite=overwrite) as root:
        for split, tasks in splits.items():
            write = partial(_write, load=load, root=root, split=split, categories=categories)
            records = run_each(write, list(enumerate(tasks, start=1)), workers, split)
            images, annotations, instances = zip(*records, strict=True)
            for name in repeated(Path(one["file_name"]).with_suffix(".png") for one in images):
                raise InputError(
                    f"expected images of different names in {split}, got several whose annotation "
                    f"is {name}; rename all but one (a.jpg and a.png have one annotation)"
                )
            contents[split] = content = {
                "info": (info or {}).get(split, {}),
                "images": images,
                "annotations": annotations,
                "categories": list(categories),
            }
            things = _instances(content, chain.from_iterable(instances))
            for kind, part in (("panoptic", content), ("instances", things)):
                if part["categories"]:
                    file = root / "annotations" / f"{kind}_{split}.json"
                    file.write_text(json.dumps(part), encoding="utf-8")
    return contents


def write_instances(
    ann_file: str | Path, seg_dir: str | Path, out: str | Path, *, workers: int = 1
) -> int:
    """Write the things of a panoptic set as instance annotations, with run lengths.

    Args:
        ann_file: JSON file of panoptic annotations.
        seg_dir: Folder of the PNG files.
        out: JSON file to write.
        workers: Processes that read and encode.

    Returns:
        Number of instances.

    Raises:
        ValueError: The annotations have an error, as :func:`~.checks.check_panoptic` finds it, or
            no class of things; or ``out`` is their file.
    """
    check_different(ann_file, out)
    content = read_coco(ann_file)
    refuse_errors(check_panoptic_json(content, ann_file), "check_panoptic.py")
    things = {one["id"] for one in content["categories"] if one["isthing"]}
    if not things:
        raise InputError(f"expected a category with isthing=1 in {ann_file}, got none")
    images = {image["id"]: image for image in content["images"]}
    tasks = [(a, images[a["image_id"]]) for a in content["annotations"] if a["image_id"] in images]
    encode = partial(_encode_things, seg_dir=Path(seg_dir), things=things)
    instances = _instances(content, chain.from_iterable(run_each(encode, tasks, workers, "encode")))
    with replacing(Path(out)) as unfinished:
        unfinished.write_text(json.dumps(instances), encoding="utf-8")
    return len(instances["annotations"])


def refuse_errors(faults: Iterable[Fault], tool: str) -> None:
    """Raise an InputError for the first fault that is an error; ``tool`` is the one to find all."""
    for fault in faults:
        if fault.severity == "error":
            raise InputError(f"{fault}; {tool} lists all faults")


def _encode_things(task: tuple[Entry, Entry], seg_dir: Path, things: set[Any]) -> list[Entry]:
    """Instances of a panoptic annotation, without ids."""
    annotation, image = task
    refuse_errors(check_panoptic_png(annotation, image, seg_dir), "check_panoptic.py")
    segments = np.asfortranarray(read_segments(seg_dir / annotation["file_name"]))
    return [
        {
            "image_id": image["id"],
            "category_id": one["category_id"],
            "iscrowd": one["iscrowd"],
            **_encode(segments == one["id"]),
        }
        for one in annotation["segments_info"]
        if one["category_id"] in things
    ]


def _instances(panoptic: Entry, annotations: Iterable[Entry]) -> Entry:
    """Content of an instance file, given that of the panoptic one and annotations without ids."""
    return panoptic | {
        "annotations": [{"id": i, **one} for i, one in enumerate(annotations, start=1)],
        "categories": [one for one in panoptic["categories"] if one["isthing"]],
    }


def _encode(mask: Mask) -> Entry:
    """Run lengths, box and area of a mask."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "segmentation": rle | {"counts": rle["counts"].decode("ascii")},
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
    }


def _write(
    task: tuple[int, T],
    load: Callable[[T], AnnotatedImage],
    root: Path,
    split: str,
    categories: Sequence[Entry],
) -> tuple[Entry, Entry, list[Entry]]:
    """Write the files of an image.

    Returns:
        Its COCO image, panoptic annotation and instance annotations, the latter without ids.
    """
    image_id, one = task[0], load(task[1])
    segments = one.panoptic.segments
    present = frozenset(np.unique(segments).tolist())
    labels = {i: label for i, label in one.panoptic.categories.items() if i in present}
    place = Path(one.file_name)
    if place.is_absolute() or ".." in place.parts:
        raise InputError(
            f"expected images below the folder of their split, got the name {place}; correct it"
        )
    size = image_size(one.image) if isinstance(one.image, Path) else one.image.shape[:2]
    if segments.shape != size or not all(VOID < number < OFFSET for number in labels):
        raise InputError(
            f"expected segments of the size {size} of {one.file_name}, height and width, with ids "
            f"from {VOID + 1} to {OFFSET - 1}, got the size {segments.shape} and ids {some(labels)}"
        )
    # mmdet derives the name of the annotation from that of the image.
    name = one.file_name.replace(".jpg", ".png")
    path = root / split / one.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(one.image, Path):
        shutil.copyfile(one.image, path)
    else:
        Image.fromarray(one.image).save(path, quality=_JPEG_QUALITY)
    ids = np.array(list(labels), np.int64)
    # Other ids become 0, and 255 when 1 is subtracted from bytes.
    classes = map_array(segments, ids, np.array(list(labels.values()), np.uint8) + np.uint8(1))
    _save_png(classes - np.uint8(1), (root / "semantic" / split / name).with_suffix(".png"))
    colors = id2rgb(map_array(segments, ids, ids))
    _save_png(colors, root / "annotations" / f"panoptic_{split}" / name)
    infos, instances = [], []
    columns = np.asfortranarray(segments)
    for number, label in labels.items():
        category = categories[label]
        shape = _encode(columns == number)
        entry = {"category_id": category["id"], "iscrowd": int(number in one.crowds), **shape}
        if category["isthing"]:
            instances.append({"image_id": image_id, **entry})
        del entry["segmentation"]
        infos.append({"id": number, **entry})
    height, width = size
    image = {"id": image_id, "file_name": one.file_name, "height": height, "width": width}
    panoptic = {"image_id": image_id, "file_name": name, "segments_info": infos}
    return image, panoptic, instances


def _save_png(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")  # whatever the name ends in


@contextmanager
def _new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder that becomes ``out`` in the end, or vanishes after an error or Ctrl-C."""
    if out.exists():
        if not overwrite:
            raise FileExistsError(
                f"expected a new folder, but {out} exists; choose another one, or set overwrite"
            )
        if not any(out.glob("annotations/panoptic_*.json")):
            raise FileExistsError(
                f"expected a panoptic data set to overwrite, but {out} has no "
                "annotations/panoptic_*.json; remove it yourself if it is not needed, or choose "
                "another folder"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sibling folder is on the target's file system, so its content can be renamed to the target.
    # It is deleted in the end, with a replaced data set in it.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        root = Path(scratch, "new")
        (root / "annotations").mkdir(parents=True)
        yield root
        if out.exists():
            out.rename(Path(scratch, "old"))
        root.rename(out)
