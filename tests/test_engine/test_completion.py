"""Pipelines and evaluators are completed before they are built."""

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from hcformer_mm.engine.completion import complete_pipelines
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG
from tests.helpers.tools import ROOT, read_scalars, run_tool

OWN_IMAGES, OWN_MAPS = "hcformer_mm.LoadImageFromFile", "hcformer_mm.LoadSemanticAnnotations"
VOID = 65535
NAMES = tuple(f"class {index}" for index in range(300))


def completed(path, **changes):
    config = Config.fromfile(ROOT / path)
    config.merge_from_dict(changes)
    complete_pipelines(config)
    return config


def test_label_maps_are_read_for_the_classes_of_their_dataset():
    own = dict(type="mmseg.BaseSegDataset", metainfo=dict(classes=NAMES))
    changes = {f"val_dataloader.dataset.{key}": value for key, value in own.items()}
    config = completed(SEMANTIC_CONFIG, **changes)
    train, val, test = (
        config[f"{split}_dataloader"].dataset.pipeline for split in ("train", "val", "test")
    )
    assert [train[0].type, val[0].type, test[0].type] == [OWN_IMAGES] * 3
    steps = (train[1], val[2], test[2])
    assert [(step.type, step.num_classes) for step in steps] == [
        (OWN_MAPS, 10),
        (OWN_MAPS, 300),
        (OWN_MAPS, 10),
    ]


def test_steps_inside_steps_and_datasets_inside_datasets_are_found():
    config = Config.fromfile(ROOT / "configs/hcformer/hcformer_r50_8xb2-160k_ade20k-512x512.py")
    own = config.test_dataloader.dataset
    own.pipeline = config.tta_pipeline
    config.test_dataloader.dataset = dict(type="ConcatDataset", datasets=[own, own])
    complete_pipelines(config)
    for part in config.test_dataloader.dataset.datasets:
        assert part.pipeline[0].type == OWN_IMAGES
        assert part.pipeline[1].transforms[2][0].num_classes == 150


def test_crops_are_chosen_by_classes_and_not_by_void():
    path = "configs/hc_fcn/hc-fcn32s_r101_4xb4-160k_ade20k-512x512.py"
    assert completed(path).train_dataloader.dataset.pipeline[3].ignore_index == 255
    own = dict(type="mmseg.BaseSegDataset", metainfo=dict(classes=NAMES))
    changes = {f"train_dataloader.dataset.{key}": value for key, value in own.items()}
    assert completed(path, **changes).train_dataloader.dataset.pipeline[3].ignore_index == VOID


def test_other_steps_stay_as_they_are():
    before, config = Config.fromfile(ROOT / SHAPES_CONFIG), completed(SHAPES_CONFIG)
    for split in ("train", "val", "test"):
        steps = config[f"{split}_dataloader"].dataset.pipeline
        assert steps[0].type == OWN_IMAGES
        assert steps[1:] == before[f"{split}_dataloader"].dataset.pipeline[1:]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Options for 300 classes, on label maps of 16 bits: classes 3, 255 and 299, and void."""
    root = tmp_path_factory.mktemp("wide")
    labels = np.repeat(np.array([3, 255, 299, VOID], np.uint16), 24) * np.ones((50, 1), np.uint16)
    for split in ("train", "val"):
        for folder, image in ((split, labels.astype(np.uint8)), (f"semantic/{split}", labels)):
            (root / folder).mkdir(parents=True)
            suffix = "jpg" if folder == split else "png"
            for name in "ab":
                Image.fromarray(image).save(root / folder / f"{name}.{suffix}")
    dataset = dict(type="mmseg.BaseSegDataset", data_root=str(root), metainfo=dict(classes=NAMES))
    dataset["metainfo"]["palette"] = [(index % 256, index // 256, 90) for index in range(300)]
    options = {
        "model.decode_head.num_classes": 300,
        "model.decode_head.ignore_index": VOID,
        "model.data_preprocessor.seg_pad_val": VOID,
        "val_evaluator.ignore_index": VOID,
        "test_evaluator.ignore_index": VOID,
    }
    for split in ("train", "val", "test"):
        options |= {f"{split}_dataloader.dataset.{key}": dataset[key] for key in dataset}
        options |= {
            f"{split}_dataloader.num_workers": 0,
            f"{split}_dataloader.persistent_workers": False,
        }
    return options


def test_labels_of_16_bits_reach_the_loss_and_the_metric(wide):
    """The padding is void too, and a class with the number 255 counts like any other."""
    config = completed(SEMANTIC_CONFIG, **wide)
    with DefaultScope.overwrite_default_scope("mmseg"):
        train, val = (
            DATASETS.build(config[f"{split}_dataloader"].dataset) for split in ("train", "val")
        )
        model = MODELS.build(config.model)
        evaluator = Evaluator(config.val_evaluator)
    batch = [train[index] for index in range(2)]
    batch = {key: [item[key] for item in batch] for key in batch[0]}
    batch = model.data_preprocessor(batch, training=True)
    for sample in batch["data_samples"]:
        labels = sample.gt_sem_seg.data
        assert labels.unique().tolist() == [3, 255, 299, VOID]
        assert labels.shape[1:] == batch["inputs"].shape[2:]
        assert (labels[0, 140:] == VOID).all()  # 256 x 133 pixels are padded to 256 x 160
        assert model.decode_head.masks_of_classes(labels).labels.tolist() == [3, 255, 299]
    losses = model(**batch, mode="loss")
    assert all(torch.as_tensor(loss).isfinite().all() for loss in losses.values())

    evaluator.dataset_meta = val.metainfo
    for index in range(2):
        sample = val[index]["data_samples"]
        labels = sample.gt_sem_seg.data
        assert labels.shape == (1, 50, 96)
        assert labels.unique().tolist() == [3, 255, 299, VOID]
        predicted = labels.clone()
        predicted[labels == VOID] = 7  # where nothing is asked
        predicted[labels == 255] = 299 if index else 255
        sample.pred_sem_seg = type(sample.gt_sem_seg)(data=predicted)
        evaluator.process([sample])
    # Class 3 is right, half of 255 is missed, and 299 is found on its pixels and on those.
    assert evaluator.evaluate(2)["mIoU"] == pytest.approx(100 * (1 + 1 / 2 + 2 / 3) / 3, abs=0.01)


def test_a_model_of_300_classes_trains_and_is_evaluated(wide, tmp_path):
    config = Config.fromfile(ROOT / SEMANTIC_CONFIG)
    config.merge_from_dict(wide)
    config.dump(tmp_path / "wide.py")
    short = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.batch_size=2"]
    run_tool(
        "tools/train.py", tmp_path / "wide.py", "--work-dir", tmp_path, "--cfg-options", *short
    )
    assert "mIoU" in set().union(*read_scalars(tmp_path))
