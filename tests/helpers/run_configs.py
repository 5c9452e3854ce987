"""Configs of runs on small sets, as checks before a run read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.runner import BaseLoop
from PIL import Image
from torch import nn

from hcformer_mm.engine.run_checks import check_run
from tests.helpers.panoptic_sets import (
    GROUND,
    SKY,
    THING,
    drawing,
    metainfo,
    write_panoptic_set,
)

IMAGES = {f"{number}.jpg": drawing(THING, GROUND, SKY, shift=number) for number in range(3)}
SPLITS = ("train", "val")


class Loop(BaseLoop):
    """A loop that was built."""

    def run(self) -> None:
        raise NotImplementedError


def head(**numbers: int) -> nn.Module:
    """A head with numbers of classes and queries, and nothing else."""
    module = nn.Module()
    for name, number in numbers.items():
        setattr(module, name, number)
    return module


def maskformer(things: int = 1, stuff: int = 2, queries: int = 20) -> nn.Module:
    """What the checks read of a panoptic model."""
    model = nn.Module()
    numbers = dict(num_things_classes=things, num_stuff_classes=stuff)
    model.panoptic_head = head(**numbers, num_queries=queries)
    model.panoptic_fusion_head = head(**numbers)
    return model


def segmentor(classes: int, queries: int = 20) -> nn.Module:
    """What the checks read of a semantic model."""
    model = nn.Module()
    model.decode_head = head(num_classes=classes, num_queries=queries)
    return model


def write_sets(root: Path, images: dict[str, Any] | None = None, **options: Any) -> None:
    """Write a panoptic set of both splits."""
    for split in SPLITS:
        write_panoptic_set(root, split, IMAGES if images is None else images, **options)


def panoptic_config(root: Path, meta: dict[str, Any] | None = None) -> Config:
    """A config of the set that :func:`write_sets` wrote, with the metric of its validation."""

    def loader(split: str) -> dict[str, Any]:
        dataset = dict(
            type="mmdet.CocoPanopticDataset",
            data_root=f"{root}/",
            metainfo=metainfo() if meta is None else meta,
            ann_file=f"annotations/panoptic_{split}.json",
            data_prefix=dict(img=f"{split}/", seg=f"annotations/panoptic_{split}/"),
            test_mode=split != "train",
        )
        sampler = dict(type="InfiniteSampler" if split == "train" else "DefaultSampler")
        return dict(dataset=dataset, sampler=sampler)

    metric = dict(
        type="mmdet.CocoPanopticMetric",
        ann_file=f"{root}/annotations/panoptic_val.json",
        seg_prefix=f"{root}/annotations/panoptic_val/",
    )
    return Config(
        dict(
            train_cfg=dict(type="IterBasedTrainLoop", max_iters=2),
            val_cfg=dict(type="ValLoop"),
            train_dataloader=loader("train"),
            val_dataloader=loader("val"),
            val_evaluator=metric,
            default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=False)),
        )
    )


def instances(root: Path, split: str = "val", names: tuple[str, ...] = ("box",), **numbers: int):
    """Write instance annotations of the images of a panoptic set, and return their file.

    Args:
        root: Root of the set.
        split: ``'train'`` or ``'val'``.
        names: Names of the categories, in their order; the objects are of the first.
        numbers: ``first``, the first image id.
    """
    images = json.loads((root / f"annotations/panoptic_{split}.json").read_text())["images"]
    annotations = [
        dict(
            id=number + 1,
            image_id=image["id"],
            category_id=1,
            iscrowd=0,
            area=576,
            bbox=[16, 12, 24, 24],
            segmentation=[[16, 12, 40, 12, 40, 36, 16, 36]],
        )
        for number, image in enumerate(images)
    ]
    categories = [dict(id=number, name=name) for number, name in enumerate(names, start=1)]
    file = root / f"annotations/instances_{split}.json"
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return str(file)


def instance_config(root: Path, meta: dict[str, Any]) -> Config:
    """A config of the files that :func:`instances` wrote."""
    config = panoptic_config(root, meta)
    for split in SPLITS:
        dataset = config[f"{split}_dataloader"].dataset
        dataset.type = "mmdet.CocoDataset"
        dataset.ann_file = f"annotations/instances_{split}.json"
        dataset.data_prefix = dict(img=f"{split}/")
    file = f"{root}/annotations/instances_val.json"
    config.val_evaluator = dict(type="mmdet.CocoMetric", metric="segm", ann_file=file)
    return config


def semantic_config(root: Path, classes: tuple[str, ...], maps: list[np.ndarray]) -> Config:
    """Write a set of label maps, the same for both splits, and return a config of it."""
    config = panoptic_config(root)
    for split in SPLITS:
        for number, labels in enumerate(maps):
            for folder, name, pixels in (
                (root / split, f"{number}.jpg", np.zeros((*labels.shape[:2], 3), np.uint8)),
                (root / "semantic" / split, f"{number}.png", labels),
            ):
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / name)
        config[f"{split}_dataloader"].dataset = dict(
            type="mmseg.BaseSegDataset",
            _scope_="mmseg",
            data_root=str(root),
            metainfo=dict(classes=classes),
            data_prefix=dict(img_path=split, seg_map_path=f"semantic/{split}"),
        )
    config.val_evaluator = dict(type="mmseg.IoUMetric")
    return config


def edit(file: Path, change: Any) -> None:
    """Change the content of a JSON file in place."""
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))


def faults(config: Config, model: nn.Module | None = None, splits: Any = SPLITS) -> list[str]:
    """Sentences that refuse a run."""
    return check_run(config, model or maskformer(), splits).faults


def warnings(config: Config, model: nn.Module | None = None, splits: Any = SPLITS) -> list[str]:
    """Sentences that warn of a run."""
    return check_run(config, model or maskformer(), splits).warnings
