"""Evaluators that read annotation files: whether these are the annotations of the dataset."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.evaluation import CocoPanopticMetric
from mmengine.config import Config
from mmengine.registry import METRICS

from .annotations import Annotations
from .datasets import Part, folder_faults, is_local
from .lookup import class_of, is_named, metrics_in

PANOPTIC, INSTANCE = ("CocoPanopticMetric",), ("CocoMetric", "CocoBoundaryMetric")
READ_FILES = (*PANOPTIC, *INSTANCE, "ClusteringMetric")
_APART = (
    "test each set of a ConcatDataset in a run of its own, or, with CocoMetric, by "
    "MultiDatasetsEvaluator"
)


@dataclass(frozen=True)
class Metric:
    """A metric that reads an annotation file.

    Attributes:
        key: Its key in the config.
        kind: Its class.
        config: Its config.
        parts: The datasets whose predictions it scores.
        apart: Whether other metrics score the rest of the datasets.
    """

    key: str
    kind: type
    config: dict[str, Any]
    parts: tuple[Part, ...]
    apart: bool

    @property
    def name(self) -> str:
        """Name of its class."""
        return self.kind.__name__

    @property
    def file(self) -> str:
        """Its annotation file."""
        return self.config["ann_file"]

    @property
    def counts_all(self) -> bool:
        """Whether it counts every image of the file, predicted or not."""
        written = self.config.get("outfile_prefix") is not None
        return self.name in INSTANCE or (self.name in PANOPTIC and written)


def metrics_of(config: Config, split: str, parts: Sequence[Part]) -> Iterator[Metric]:
    """Yield the metrics of a split that read annotation files of this machine.

    Args:
        config: Config of the runner.
        split: ``'val'`` or ``'test'``.
        parts: Datasets of its loop.
    """
    apart = is_named(config.get(f"{split}_evaluator"), "MultiDatasetsEvaluator")
    for index, (key, metric) in enumerate(metrics_in(config, split)):
        kind = class_of(METRICS, metric)
        if kind is None or kind.__name__ not in READ_FILES or metric.get("format_only"):
            continue
        if is_local(metric.get("ann_file"), metric.get("backend_args")):
            scored = parts[index : index + 1] if apart else parts
            yield Metric(key, kind, metric, tuple(scored), apart)


def metric_faults(
    metric: Metric, annotations: Annotations, read: Mapping[str, Annotations]
) -> Iterator[str]:
    """Yield a sentence if a metric scores images against other annotations than theirs.

    Args:
        metric: The metric.
        annotations: What its file has.
        read: What the files of the datasets have, by the keys of the datasets.
    """
    if metric.apart and not metric.counts_all:
        yield (
            f"expected a metric that scores its images at the end in {metric.key}, got "
            f"{metric.name}, which a MultiDatasetsEvaluator gives the images of all datasets; test "
            "each dataset in a run of its own"
        )
        return
    images: dict[Any, str] = {}
    sides: dict[Any, float] = {}
    for part in metric.parts:
        if part.key not in read:
            return  # a dataset of another kind
        sides |= read[part.key].sides
        for image, name in read[part.key].images.items():
            if image in images:
                yield (
                    f"expected images with ids of their own in the datasets that {metric.key} "
                    f"({metric.name}) scores, got the id {image} in {metric.parts[0].key} and in "
                    f"{part.key}, which {metric.file} cannot tell apart; {_APART}"
                )
                return
            images[image] = name
    known = annotations.images
    foreign = [
        name
        for image, name in images.items()
        if image not in known
        or os.path.basename(known[image]) != os.path.basename(name)
        or annotations.sides.get(image) != sides.get(image)
    ]
    name = f"{metric.key}.ann_file"
    if foreign:
        remedy = (
            _APART if len(metric.parts) > 1 else f"set {name} to the annotations of the dataset"
        )
        yield (
            f"expected all {len(images)} images of {_keys(metric.parts)} in {metric.file} "
            f"({name}), got other ids, names or sizes for {len(foreign)}, such as {foreign[0]}; "
            f"{remedy}"
        )
    elif metric.counts_all and (rest := len(known) - len(images)):
        yield (
            f"expected {metric.file} ({name}) to have the images of {_keys(metric.parts)} alone, "
            f"got {rest} more, which {metric.name} counts as missed; set {name} to a file without "
            "them"
        )
    folder = metric.config.get("seg_prefix")
    if folder and not foreign and is_local(folder, metric.config.get("backend_args")):
        maps = [annotations.maps[image] for image in images if image in annotations.maps]
        if metric.kind is CocoPanopticMetric and any(os.path.dirname(one) for one in maps):
            yield (
                f"expected hcformer_mm.CocoPanopticMetric as {metric.key} for images in several "
                "folders, got mmdet.CocoPanopticMetric, which ignores folders; set its type"
            )
            return
        yield from folder_faults(folder, f"{metric.key}.seg_prefix", maps)


def metric_warnings(
    metric: Metric, annotations: Annotations, read: Mapping[str, Annotations]
) -> Iterator[str]:
    """Yield a sentence if a metric may not score what the user means; see metric_faults."""
    for part in metric.parts:
        own = read.get(part.key, annotations)
        if own.panoptic == annotations.panoptic:
            # Training and validation images often have the same ids and names.
            counts = own.targets.items()
            if other := [one for one, count in counts if annotations.targets.get(one, 0) != count]:
                yield (
                    f"{metric.file} ({metric.key}.ann_file) has other segments than {own.file} "
                    f"({part.key}.ann_file) for {len(other)} images, such as "
                    f"{own.images.get(other[0])}"
                )
        if metric.counts_all and getattr(part.dataset, "_indices", None) is not None:
            yield (
                f"{part.key}.indices leaves out images, which {metric.key} ({metric.name}) counts "
                "as missed: its scores are too low"
            )


def _keys(parts: Sequence[Part]) -> str:
    return " and ".join(part.key for part in parts)


def metric_classes(part: Part, annotations: Annotations) -> tuple[str, ...]:
    """The classes that a metric looks up in its file: only things, if it has no stuff."""
    things = getattr(part.dataset, "metainfo", {}).get("thing_classes", ())
    if things and not set(annotations.categories) & (set(part.classes) - set(things)):
        return tuple(things)
    return part.classes
