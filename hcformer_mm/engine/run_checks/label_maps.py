"""Datasets of label maps: their files, and the values in some of the maps."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations

from ...datasets.checks import Fault, check_image, check_label_maps
from ...datasets.checks.files import UnreadableError, open_file
from ...datasets.checks.semantic import read_label_map
from ...structures.data_samples import VOID_LABEL
from .annotations import NUMBER_OF_SAMPLES
from .datasets import Part, folder_faults, is_local
from .findings import Findings
from .lookup import class_of

T = TypeVar("T")

FEW, MANY = 16, 512
"""Label maps that are opened, spread over the dataset; many if few show less than two classes."""


def label_map_findings(part: Part, queries: int | None, found: Findings) -> None:
    """Check the images and label maps of a dataset of MMSegmentation.

    Args:
        part: The dataset.
        queries: Queries of the head that learns from it; None if it has none.
        found: Gets faults and warnings.
    """
    dataset, key, prefix = part.dataset, part.key, part.dataset.data_prefix
    folder, names = prefix.get("img_path"), dataset.ann_file
    if not is_local(folder, dataset.backend_args):
        return
    if names and not Path(names).exists():
        found.faults.append(f"expected a file as {key}.ann_file, got {names}, which does not exist")
        return
    faults, entries = list(folder_faults(folder, f"{key}.data_prefix.img_path")), []
    if not faults:
        entries = dataset.load_data_list()
        for name in ("img_path", "seg_map_path"):
            if name in prefix:
                start = len(os.path.join(prefix[name], ""))
                files = [entry[name][start:] for entry in entries if name in entry]
                faults += folder_faults(prefix[name], f"{key}.data_prefix.{name}", files)
        if not entries:
            faults.append(
                f"expected images that end in {dataset.img_suffix!r} in {folder}, got none; "
                f"correct {key}.data_prefix.img_path or {key}.img_suffix"
            )
    found.faults += faults
    if not faults:
        found.add(_image_faults(_spread(entries, NUMBER_OF_SAMPLES)), "check_semantic")
    maps = [entry["seg_map_path"] for entry in entries if "seg_map_path" in entry]
    if maps and not faults and part.classes:
        found.faults += _loader_faults(part)
        found.add(_values(part, maps), "check_semantic")
        if queries:
            found.warnings += _query_warnings(part, maps, queries)


def _spread(items: Sequence[T], number: int) -> list[T]:
    """Choose a number of items at equal distances."""
    number = min(number, len(items))
    return [items[index * len(items) // number] for index in range(number)]


def _image_faults(entries: list[dict[str, Any]]) -> Iterator[Fault]:
    """Yield the faults of images, which have the sizes of their label maps if they have any."""
    for entry in entries:
        size = None
        if "seg_map_path" in entry:
            try:
                with open_file(Path(entry["seg_map_path"])) as labels:
                    size = labels.height, labels.width
            except UnreadableError:
                pass  # a fault of the label map, reported there
        yield from check_image(Path(entry["img_path"]), size)


def _values(part: Part, maps: Sequence[str]) -> list[Fault]:
    """Find the faults of the values of some maps, as they are in the files."""
    # With fewer classes than the dataset's own, MMSegmentation renumbers those of the files.
    classes = (
        part.classes if part.dataset.label_map is None else type(part.dataset).METAINFO["classes"]
    )
    for number in (FEW, MANY):
        faults = check_label_maps(
            _spread(maps, number),
            len(classes),
            ignore_index=part.dataset.ignore_index,
            reduce_zero_label=part.dataset.reduce_zero_label,
        )
        # A rare class may be in other maps.
        faults = [fault for fault in faults if fault.kind != "class without pixels"]
        if not {"one class", "one class alone", "only void"} & {fault.kind for fault in faults}:
            break
    return faults


def _loader_faults(part: Part) -> Iterator[str]:
    """Yield a sentence if the pipeline reads less bits than the labels have."""
    kinds = [class_of(TRANSFORMS, step) for step in part.config.get("pipeline", ())]
    if len(part.classes) > VOID_LABEL and LoadAnnotations in kinds:
        yield (
            f"expected hcformer_mm.LoadSemanticAnnotations in {part.key}.pipeline for more than "
            f"{VOID_LABEL} classes, got mmseg.LoadAnnotations, which reads 8 bits of a label; "
            "replace it"
        )


def _query_warnings(part: Part, maps: Sequence[str], queries: int) -> Iterator[str]:
    """Yield a sentence if a map has more classes than the head has queries."""
    if queries >= len(part.classes):
        return
    for path in _spread(maps, FEW):
        try:
            labels = set(np.unique(read_label_map(Path(path))).tolist())
        except UnreadableError:
            continue  # a fault of the label map, reported there
        labels -= {part.dataset.ignore_index}
        if len(labels) > queries:
            yield (
                f"{path} has {len(labels)} classes for the {queries} queries of model.decode_head, "
                "so that some are not learned; set model.decode_head.num_queries to "
                f"{len(part.classes)}"
            )
            return
