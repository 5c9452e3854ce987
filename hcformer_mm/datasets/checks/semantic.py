"""Check of label maps, as MMSegmentation's dataset reads them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ...structures.data_samples import VOID_LABEL, WIDE_VOID_LABEL, void_label
from ...utils.errors import some
from ...utils.progress import run_each
from .faults import Fault
from .files import UnreadableError, check_size, decode, image_size, open_file


def check_semantic(
    img_dir: str | Path,
    map_dir: str | Path,
    num_classes: int,
    *,
    img_suffix: str = ".jpg",
    seg_map_suffix: str = ".png",
    ann_file: str | Path | None = None,
    ignore_index: int = VOID_LABEL,
    reduce_zero_label: bool = False,
    num_workers: int = 1,
) -> list[Fault]:
    """Find the faults of a folder of images and of their label maps.

    Args:
        img_dir: Folder of the images, searched recursively.
        map_dir: Folder of the label maps.
        num_classes: Number of classes, without void.
        img_suffix: What the names of images end in.
        seg_map_suffix: What the names of label maps end in, after the same beginning.
        ann_file: File with the names of the images to check, without suffix, one a line; None
            checks all.
        ignore_index: Label of void.
        reduce_zero_label: Whether classes count from 1 and 0 is void, as in ADE20K.
        num_workers: Processes that read files.

    Returns:
        Faults of the lists of files, of each image and map, and of all maps together.

    Raises:
        ValueError: ``num_workers`` is below 1.
    """
    img_dir, map_dir = Path(img_dir), Path(map_dir)
    if ann_file is None:
        names = [name.removesuffix(img_suffix) for name in _files(img_dir, img_suffix)]
    else:
        lines = Path(ann_file).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    faults = list(_check_lists(img_dir, map_dir, names, img_suffix, seg_map_suffix, ann_file))
    tasks = [
        (map_dir / f"{name}{seg_map_suffix}", img_dir / f"{name}{img_suffix}") for name in names
    ]
    check = partial(
        _check_pair,
        num_classes=num_classes,
        ignore_index=ignore_index,
        reduce_zero_label=reduce_zero_label,
    )
    return faults + _together(
        run_each(check, tasks, num_workers, "check files"), map_dir, num_classes
    )


def check_label_maps(
    maps: Sequence[str | Path],
    num_classes: int,
    *,
    ignore_index: int = VOID_LABEL,
    reduce_zero_label: bool = False,
) -> list[Fault]:
    """Find the faults of some label maps, also those that only several maps together show.

    Args:
        maps: The files.
        num_classes: Number of classes, without void.
        ignore_index: Label of void.
        reduce_zero_label: Whether classes count from 1 and 0 is void, as in ADE20K.
    """
    paths = [Path(path) for path in maps]
    read = (_read_map(p, num_classes, ignore_index, reduce_zero_label) for p in paths)
    return _together(read, Path(*paths[:1]).parent, num_classes)


def _check_pair(
    task: tuple[Path, Path], num_classes: int, ignore_index: int, reduce_zero_label: bool
) -> tuple[list[Fault], Counter[int]]:
    path, image = task
    size, faults = None, []
    try:
        size = image_size(image)
    except UnreadableError as error:
        faults = [error.fault]
    more, labels = _read_map(path, num_classes, ignore_index, reduce_zero_label, size)
    return faults + more, labels


def _read_map(
    path: Path,
    num_classes: int,
    ignore_index: int,
    reduce_zero_label: bool,
    size: tuple[int, int] | None = None,
) -> tuple[list[Fault], Counter[int]]:
    """Return the faults of a label map and the number of its pixels of each label.

    Labels count from 0, and void is -1.
    """
    try:
        values = read_label_map(path)
    except UnreadableError as error:
        return [error.fault], Counter()
    faults = check_size(path, values.shape, size)
    found, counts = np.unique(values, return_counts=True)
    void = {void_label(num_classes), WIDE_VOID_LABEL}
    if ignore_index != VOID_LABEL:
        void.add(ignore_index)
    labels: Counter[int] = Counter()
    for value, count in zip(found.tolist(), counts.tolist(), strict=True):
        labels[-1 if value in void else value - reduce_zero_label] += count
    wrong = [label for label in labels if label < -1 or label >= num_classes]
    if wrong:
        raw = [label + reduce_zero_label for label in wrong[:5]]
        first, last = int(reduce_zero_label), num_classes - 1 + reduce_zero_label
        message = (
            f"expected classes from {first} to {last}, and {void_label(num_classes)} for void, got "
            f"{', '.join(map(str, raw))}"
        )
        faults.append(Fault("label out of range", path, message))
    elif values.itemsize == 1 and VOID_LABEL not in void and VOID_LABEL in found:
        message = "255 in 8 bits is void or a class, of more than 255; save the map with 16 bits"
        faults.append(Fault("void or class", path, message))
    elif labels.keys() == {-1}:
        faults.append(Fault("all void", path, "all pixels are void"))
    return faults, labels


def read_label_map(path: Path) -> np.ndarray:
    """Values of a label map ``(H, W)``, as MMSegmentation reads them.

    Raises:
        UnreadableError: The file is missing or damaged, or its values are no labels.
    """
    with open_file(path) as image:
        if image.format == "JPEG":
            message = "expected a PNG, got a JPEG, whose compression changes labels"
            raise UnreadableError("lossy label map", path, message)
        # Of a file with a palette, Pillow gives the indices and not the colors, which is right.
        if len(image.getbands()) != 1:
            message = (
                f"expected one channel of class numbers, got mode {image.mode}; if colors stand "
                "for classes, replace them by their numbers"
            )
            raise UnreadableError("color label map", path, message)
        decode(path, image)
        values = np.asarray(image)
    if values.dtype.kind == "f":
        raise UnreadableError("float label map", path, "expected integers, got floats")
    return values


def _check_lists(
    img_dir: Path,
    map_dir: Path,
    names: list[str],
    img_suffix: str,
    seg_map_suffix: str,
    ann_file: str | Path | None,
) -> Iterator[Fault]:
    """Compare the lists of images and of label maps."""
    maps = set(_files(map_dir, seg_map_suffix))
    others = Counter(
        path.suffix
        for path in img_dir.rglob("*")
        if path.suffix.lower() in IMG_EXTENSIONS
        and not path.name.endswith(img_suffix)
        and map_dir not in path.parents
    )
    got = ", ".join(f"{count} that end in {suffix}" for suffix, count in others.items())
    if not names:
        message = f"expected images that end in {img_suffix} (img_suffix), got {got or 'none'}"
        yield Fault("no image", Path(ann_file or img_dir), message)
    elif others and ann_file is None:
        message = f"mmseg leaves out images that do not end in {img_suffix} (img_suffix): {got}"
        yield Fault("image of another suffix", img_dir, message)
    if names and not any(f"{name}{seg_map_suffix}" in maps for name in names):
        near = next((m for m in _files(map_dir, "") if m.startswith(names[0])), None)
        message = f"no label map is called like its image, {names[0]}{seg_map_suffix}"
        if near is not None:
            message += f"; set seg_map_suffix={near.removeprefix(names[0])!r} for {near}"
        yield Fault("map suffix", map_dir, message)
    if ann_file is None:
        for name in sorted(maps - {f"{name}{seg_map_suffix}" for name in names}):
            yield Fault("map without image", map_dir / name, "no image belongs to this label map")


def _files(folder: Path, suffix: str) -> list[str]:
    """Relative names of the files in a folder, at any depth, that end in a suffix."""
    found = (path for path in folder.rglob("*") if path.name.endswith(suffix) and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _together(
    read: Iterable[tuple[list[Fault], Counter[int]]], folder: Path, num_classes: int
) -> list[Fault]:
    """Return the faults of several maps, and then those that only all of them show."""
    faults: list[Fault] = []
    labels: Counter[int] = Counter()
    number = 0
    for found, pixels in read:
        faults += found
        labels += pixels
        number += bool(pixels)
    if not labels.keys() <= set(range(-1, num_classes)):
        return faults  # labels out of range, reported for their maps
    void, present = labels[-1], sorted(label for label in labels if label >= 0)
    missing = sorted(set(range(num_classes)) - set(present))
    if void and not present:
        message = f"all pixels of {number} maps are void, so nothing can be learned"
        faults.append(Fault("only void", folder, message))
    elif void and len(present) == 1 and missing:
        message = (
            f"{number} maps have class {present[0]} alone, no pixel of "
            f"{'class' if len(missing) == 1 else 'classes'} {some(missing, 10)}, and void; if void "
            "pixels are a class, as in masks of 0 and 255, give them its number (divide by 255)"
        )
        faults.append(Fault("one class alone", folder, message))
    elif len(present) == 1:
        message = f"{number} maps have class {present[0]} alone, so nothing can be learned"
        faults.append(Fault("one class", folder, message))
    elif missing and number:
        message = f"{len(missing)} classes have no pixel in {number} maps: {some(missing, 10)}"
        faults.append(Fault("class without pixels", folder, message))
    return faults
