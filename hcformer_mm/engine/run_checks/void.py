"""Void: where it is 255, but more than 255 classes make that a class."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from mmdet.datasets import CocoPanopticDataset
from mmdet.evaluation import SemSegMetric
from mmengine.config import Config
from mmengine.registry import METRICS
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from torch import nn

from ...structures.data_samples import VOID_LABEL, void_label
from .datasets import Part
from .lookup import class_of, metrics_in


def void_faults(
    config: Config,
    model: nn.Module,
    heads: Mapping[str, nn.Module],
    parts: Sequence[Part],
    splits: Sequence[str],
) -> Iterator[str]:
    """Yield a sentence if a dataset has more than 255 classes and something takes 255 for void.

    Args:
        config: Config of the runner.
        model: The model.
        heads: Its heads by their keys.
        parts: The datasets.
        splits: The loops that will run.
    """
    wide = [part for part in parts if len(part.classes) > VOID_LABEL]
    for part in wide:
        if isinstance(part.dataset, CocoPanopticDataset):
            yield (
                f"expected at most {VOID_LABEL} classes in {part.name}, because void of mmdet's "
                f"panoptic annotations is {VOID_LABEL}, got {len(part.classes)}; leave some out"
            )
    number = max((len(p.classes) for p in wide if isinstance(p.dataset, BaseSegDataset)), default=0)
    if not number:
        return
    values = {f"{key}.ignore_index": getattr(h, "ignore_index", None) for key, h in heads.items()}
    processor = getattr(getattr(model, "module", model), "data_preprocessor", None)
    if "train" in splits:
        values["model.data_preprocessor.seg_pad_val"] = getattr(processor, "seg_pad_val", None)
    for key, metric in chain.from_iterable(metrics_in(config, split) for split in splits):
        kind = class_of(METRICS, metric) or object
        if issubclass(kind, IoUMetric):
            values[f"{key}.ignore_index"] = metric.get("ignore_index", VOID_LABEL)
        if issubclass(kind, IoUMetric | SemSegMetric) and metric.get("output_dir"):
            yield (
                f"expected at most {VOID_LABEL} classes to write label maps by {key}, which has 8 "
                f"bits for a label, got {number}; let demo/image_demo.py write them"
            )
    void = void_label(number)
    wrong = [key for key, value in values.items() if value is not None and value != void]
    if wrong:
        yield (
            f"expected void to be {void}, as {VOID_LABEL} is one of the {number} classes of "
            f"{wide[0].name}, got {values[wrong[0]]} in {', '.join(wrong)}; set them to {void}"
        )
