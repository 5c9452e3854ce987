"""Completing a config before anything is built: steps of pipelines, and metrics of evaluators."""

from collections.abc import Iterator
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.evaluation import CocoPanopticMetric
from mmengine.config import Config
from mmengine.registry import METRICS, TRANSFORMS, DefaultScope
from mmseg.datasets.transforms import RandomCrop

from ..datasets.transforms import LoadSemanticAnnotations
from ..structures.data_samples import void_label
from .run_checks.datasets import parts_of
from .run_checks.lookup import class_of, metrics_in


def complete_pipelines(config: Config) -> None:
    """Complete the pipelines of the datasets in a config, in place, before they are built.

    Label maps are read and cropped for the number of classes of their dataset. mmcv's
    ``LoadImageFromFile``, which the inferencers of mmdet and mmseg look for by its name, becomes
    this package's, which reads the same pixels from files of 8 bits.

    Args:
        config: Full config of a runner.
    """
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        for split in ("train", "val", "test"):
            loader = config.get(f"{split}_dataloader") or {}
            for part in parts_of(loader.get("dataset"), f"{split}_dataloader.dataset"):
                for step in _steps(part.config.get("pipeline")):
                    kind = class_of(TRANSFORMS, step)
                    if kind is LoadImageFromFile:
                        step["type"] = "hcformer_mm.LoadImageFromFile"
                    elif part.classes and kind is LoadSemanticAnnotations:
                        step["num_classes"] = len(part.classes)
                    elif part.classes and kind is RandomCrop:
                        step.setdefault("ignore_index", void_label(len(part.classes)))


def complete_evaluators(config: Config) -> None:
    """Replace ``mmdet.CocoPanopticMetric`` in a config, in place, by this package's.

    Its figures are the same, but it also scores sets that lack things or stuff, where mmdet's
    divides by zero after the first validation, and images of one name in several folders.

    Args:
        config: Full config of a runner.
    """
    with DefaultScope.overwrite_default_scope(config.get("default_scope")):
        for split in ("val", "test"):
            for _, metric in metrics_in(config, split):
                replaced = class_of(METRICS, metric) is CocoPanopticMetric
                if replaced and metric.get("ann_file") and metric.get("seg_prefix"):
                    metric["type"] = "hcformer_mm.CocoPanopticMetric"


def _steps(pipeline: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a pipeline, also those inside others."""
    if isinstance(pipeline, dict):
        if "type" in pipeline:
            yield pipeline
        pipeline = list(pipeline.values())
    if isinstance(pipeline, list | tuple):
        for part in pipeline:
            yield from _steps(part)
