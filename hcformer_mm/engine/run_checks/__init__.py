"""Checks of a run before it spends anything: settings, classes, annotations and first images.

Each module has the rules of one subject, and :func:`check_run` applies them. Rules that do not know
a component, such as a dataset of another package, leave it to MMEngine.
"""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmseg.datasets import BaseSegDataset

from .annotations import Annotations, read_annotations
from .bands import band_faults
from .classes import class_faults, compare_classes, heads_of, metainfo_faults
from .coco import class_order_faults, coco_faults, first_images, first_maps, query_warnings, tool_of
from .datasets import Part, is_local, parts_of
from .evaluators import Metric, metric_classes, metric_faults, metric_warnings, metrics_of
from .findings import Findings
from .label_maps import label_map_findings
from .schedule import schedule_faults, schedule_warnings
from .void import void_faults

__all__ = ["Findings", "check_run"]


def check_run(
    config: Config, model: Any, splits: Sequence[str], *, hand_over: bool = False
) -> Findings:
    """Check what MMEngine's runner is about to run.

    Args:
        config: Config of the runner.
        model: Model of the runner.
        splits: The loops that will run, of ``'train'``, ``'val'`` and ``'test'``.
        hand_over: Whether datasets are built after this, and get the annotations that are parsed.

    Returns:
        Faults, which make the run useless or wrong, and warnings.
    """
    found = Findings()
    heads = heads_of(model)
    if "train" in splits:
        found.faults += schedule_faults(config)
        found.warnings += schedule_warnings(config)

    def queries(part: Part, head: str) -> int | None:
        # The validation set is like the training set.
        learns = part.key.startswith(splits[0])
        return getattr(heads.get(head), "num_queries", None) if learns else None

    parts: list[Part] = []
    metrics: list[Metric] = []
    for split in splits:
        loader = config.get(f"{split}_dataloader")
        if isinstance(loader, dict) and config.get(f"{split}_cfg") is not None:
            own = list(parts_of(loader.get("dataset"), f"{split}_dataloader.dataset"))
            parts += own
            metrics += metrics_of(config, split, own)
    read: dict[str, Annotations] = {}
    for part in parts:
        found.faults += band_faults(config, part.config.get("pipeline"), f"{part.key}.pipeline")
        if faults := list(metainfo_faults(part.config.get("metainfo"), f"{part.key}.metainfo")):
            found.faults += faults
        elif part.dataset is not None:
            found.faults += class_faults(heads, part.dataset, part.name, part.key)
            if part.reads_coco:
                file, key = part.dataset.ann_file, f"{part.key}.ann_file"
                if (known := _read(file, key, found, hand_over=hand_over)) is not None:
                    read[part.key] = known
            elif isinstance(part.dataset, BaseSegDataset):
                label_map_findings(part, queries(part, "model.decode_head"), found)
    for part in parts:
        if (known := read.get(part.key)) is not None:
            found.faults += coco_faults(part, known)
            if known.panoptic is None and not part.dataset.test_mode:
                found.warnings.append(
                    f"{known.file} ({part.key}.ann_file) has no annotations, so nothing can be "
                    "learned"
                )
            if number := queries(part, "model.panoptic_head"):
                found.warnings += query_warnings(known, number)
            # Both compare outlines with boxes.
            found.add(dict.fromkeys((*known.faults, *first_images(part, known))), tool_of(known))
    if heads:
        compare_classes(parts, found)
    found.faults += void_faults(config, model, heads, parts, splits)
    ordered = [(read[part.key], part.classes, part.key) for part in parts if part.key in read]
    for metric in metrics:
        if (known := _read(metric.file, f"{metric.key}.ann_file", found)) is not None:
            found.faults += metric_faults(metric, known, read)
            found.warnings += metric_warnings(metric, known, read)
            if known.panoptic is None:
                found.warnings.append(
                    f"{known.file} ({metric.key}.ann_file) has no annotations, so nothing can be "
                    "scored"
                )
            folder = metric.config.get("seg_prefix")
            if folder and known.panoptic and is_local(folder):
                found.add(first_maps(known, folder), tool_of(known))
            if metric.parts and (classes := metric_classes(metric.parts[0], known)):
                ordered.append((known, classes, metric.parts[0].key))
    found.faults += class_order_faults(ordered)
    # A metric usually reads the files of its dataset.
    found.faults = list(dict.fromkeys(found.faults))
    found.warnings = list(dict.fromkeys(found.warnings))
    return found


def _read(file: Any, key: str, found: Findings, *, hand_over: bool = False) -> Annotations | None:
    """Read an annotation file, or add the fault of it."""
    try:
        return read_annotations(file, hand_over=hand_over)
    except OSError as error:
        found.faults.append(
            f"expected an annotation file as {key}, got {file}: {error.strerror}; correct the path"
        )
    except ValueError as error:
        found.faults.append(str(error))
    return None
