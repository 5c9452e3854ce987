"""Datasets that read COCO files: classes, images and segments against the config."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoPanopticDataset

from ...datasets.checks import Fault, check_image, check_masks, check_panoptic_png
from ...utils.errors import some
from .annotations import Annotations
from .datasets import Part, folder_faults


def class_order_faults(used: Sequence[tuple[Annotations, tuple[str, ...], str]]) -> Iterator[str]:
    """Yield a sentence for every file whose labels would be named after other classes.

    MMDetection numbers labels by the order of the categories in the file, and names them by the
    order of ``classes``.

    Args:
        used: Every use of a file: the file, the classes that are looked up in it, in the order of
            their labels, and the key of the dataset that names them.
    """
    orders = [tuple(n for n in known.categories if n in set(classes)) for known, classes, _ in used]
    common = set.intersection(*map(set, orders)) if orders else set()
    one_order = len({tuple(name for name in order if name in common) for order in orders}) == 1
    for order, (known, classes, key) in zip(orders, used, strict=True):
        names = order if len(order) == len(classes) else tuple(known.categories)
        paste = f"set {key}.metainfo to {_metainfo(known, names)}"
        if absent := [name for name in classes if name not in order]:
            yield (
                f"expected each of the classes of {key}.metainfo among the categories of "
                f"{known.file}, got no {some(absent)}; {paste}"
            )
        elif order != classes:
            wrong, right = next(
                pair for pair in zip(classes, order, strict=True) if len({*pair}) > 1
            )
            if not one_order:
                paste = "the files of this run differ in it: list their categories in one order"
            yield (
                f"expected the classes of {key}.metainfo in the order of the categories of "
                f"{known.file}, which numbers labels, got {wrong!r} in place of {right!r}; "
                f"{paste}"
            )


def _metainfo(annotations: Annotations, names: tuple[str, ...]) -> str:
    """Metainfo of classes of a file, to paste into a config."""
    text = f"classes={names}"
    if annotations.panoptic:
        things = tuple(name for name in names if annotations.categories[name])
        stuff = tuple(name for name in names if not annotations.categories[name])
        text += f", thing_classes={things}, stuff_classes={stuff}"
    return text


def tool_of(annotations: Annotations) -> str:
    """Name of the tool that lists all faults of a file."""
    return "check_panoptic" if annotations.panoptic else "check_instances"


def coco_faults(part: Part, annotations: Annotations) -> Iterator[str]:
    """Yield a sentence for every contradiction between a dataset's config and its COCO file."""
    dataset, file, key = part.dataset, annotations.file, part.key
    panoptic = isinstance(dataset, CocoPanopticDataset)
    if annotations.panoptic is not None and annotations.panoptic != panoptic:
        yield (
            f"expected {'panoptic' if panoptic else 'instance'} annotations in {file} for "
            f"{part.name}, got {'instance' if panoptic else 'panoptic'} annotations; correct "
            f"{key}.ann_file or {key}.type"
        )
        return
    if panoptic and (unknown := sorted(annotations.used - set(part.classes))):
        yield (
            f"expected no segments in {file} of categories that {key}.metainfo leaves out, got "
            f"{some(unknown)}; add them to its classes, or remove them from the file"
        )
    yield from _thing_faults(annotations, dataset.metainfo, key)
    images = _kept(part, annotations)
    if annotations.images and not images:
        yield (
            f"expected images in {file} that {key}.filter_cfg keeps, got none with "
            f"{dict(dataset.filter_cfg)}; set filter_empty_gt=False and a smaller min_size"
        )
    prefix = dataset.data_prefix
    if "img" in prefix:
        yield from folder_faults(prefix["img"], f"{key}.data_prefix.img", images)
    if panoptic and prefix.get("seg"):
        maps = (name.replace(".jpg", ".png") for name in images)
        yield from folder_faults(prefix["seg"], f"{key}.data_prefix.seg", maps)


def _kept(part: Part, annotations: Annotations) -> list[str]:
    """Names of the images that a dataset does not leave out by its ``filter_cfg``."""
    dataset, images = part.dataset, annotations.images
    if dataset.test_mode or not dataset.filter_cfg:
        return list(images.values())
    least = dataset.filter_cfg.get("min_size", 0)
    kept = {one for one, side in annotations.sides.items() if side >= least}
    if dataset.filter_cfg.get("filter_empty_gt"):
        kept &= set[Any]().union(*(annotations.objects.get(one, ()) for one in part.classes))
    return [name for image, name in images.items() if image in kept]


def _thing_faults(annotations: Annotations, metainfo: Mapping[str, Any], key: str) -> Iterator[str]:
    """Yield a sentence for classes that are things in the file and stuff in the config."""
    for name, isthing in annotations.categories.items():
        for kind in ("stuff_classes", "thing_classes"):
            if isthing == (kind == "stuff_classes") and name in metainfo.get(kind, ()):
                yield (
                    f"expected isthing={1 - int(isthing)} of the category {name!r} in "
                    f"{annotations.file}, as it is among {key}.metainfo.{kind}, got {isthing}; "
                    "correct one of them"
                )


def first_images(part: Part, annotations: Annotations) -> Iterator[Fault]:
    """Yield the faults of the first images of a dataset, and of their PNG files or masks."""
    prefix = part.dataset.data_prefix
    for image, own in annotations.samples:
        path = Path(prefix.get("img", ""), image["file_name"])
        if path.is_file():  # else a folder is wrong, which has its own sentence
            yield from check_image(path, (image["height"], image["width"]))
        if not annotations.panoptic:
            yield from check_masks(image, own, annotations.file)
    if annotations.panoptic and prefix.get("seg"):
        yield from first_maps(annotations, prefix["seg"])


def first_maps(annotations: Annotations, folder: str) -> Iterator[Fault]:
    """Yield the faults of the PNG files of the first images."""
    for image, own in annotations.samples:
        for annotation in own:
            if Path(folder, annotation["file_name"]).is_file():
                yield from check_panoptic_png(annotation, image, folder)


def query_warnings(annotations: Annotations, queries: int) -> Iterator[str]:
    """Yield a sentence if images have more segments than the head has queries."""
    key = "model.panoptic_head"
    if not annotations.targets:
        return
    image, most = max(annotations.targets.items(), key=lambda item: item[1])
    if most > queries:
        crowded = sum(number > queries for number in annotations.targets.values())
        yield (
            f"{annotations.images.get(image)} of {annotations.file} has {most} segments for the "
            f"{queries} queries of {key}: {crowded} of {len(annotations.images)} images have more "
            f"than can be learned; set {key}.num_queries to {most} or more"
        )
