"""Configs of every data set, from files to metrics, on miniature sets in their own layouts."""

import json
import runpy

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from PIL import Image

from hcformer_mm.utils.errors import InputError
from tests.helpers.tools import ROOT, loader_options, read_metrics, read_scalars, run_tool

HCFORMER = "configs/hcformer/hcformer"
ADE20K = f"{HCFORMER}_r50_8xb2-160k_ade20k-512x512.py"
CITYSCAPES = f"{HCFORMER}_r50_8xb2-90k_cityscapes-512x1024.py"
COCO_INSTANCE = f"{HCFORMER}_r50_8xb2-lsj-50e_coco-instance.py"
SIZE = (96, 128)

# A ResNet-18, one layer and few points; two iterations; MMEngine's mixed precision needs a GPU.
QUICK = [
    "optim_wrapper.type=OptimWrapper",
    "train_cfg.max_iters=2",
    "train_cfg.val_interval=2",
    "model.backbone.backbone.depth=18",
    "model.backbone.backbone.init_cfg=None",
]
QUICK_SEGMENTOR = [
    *QUICK,
    "model.decode_head.in_channels=512",
    "model.decode_head.transformer_decoder.num_layers=1",
    "model.decode_head.train_cfg.num_points=64",
    "train_dataloader.dataset.pipeline.2.scales=[64,96]",
    "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
    "train_dataloader.dataset.pipeline.6.size=(64,64)",
    "val_dataloader.dataset.pipeline.1.scale=(256,64)",
    "test_dataloader.dataset.pipeline.1.scale=(256,64)",
]
SLIDE = [
    "model.test_cfg.mode=slide",
    "model.test_cfg.crop_size=(64,64)",
    "model.test_cfg.stride=(32,32)",
]


def paint(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def stripes(labels, rng):
    """A label map of upright stripes, and an image of it."""
    width = -(-SIZE[1] // len(labels))
    label_map = np.tile(np.repeat(labels, width)[: SIZE[1]], (SIZE[0], 1)).astype(np.uint8)
    image = np.stack((label_map, 255 - label_map, label_map // 2), axis=-1)
    return label_map, image + rng.integers(0, 20, image.shape, dtype=np.uint8)


def write_stripes(root, splits, image_path, label_path, labels):
    """Three images a split and their label maps, under paths with the split and a number."""
    rng = np.random.default_rng(0)
    for split in splits:
        for i, values in enumerate(labels):
            label_map, image = stripes(values, rng)
            paint(root / image_path.format(split, i), image)
            paint(root / label_path.format(split, i), label_map)
    return root


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    """Labels 1 to 150, and 0 for other objects."""
    return write_stripes(
        tmp_path_factory.mktemp("ade") / "ADEChallengeData2016",
        ("training", "validation"),
        "images/{0}/ADE_{0}_{1:08d}.jpg",
        "annotations/{0}/ADE_{0}_{1:08d}.png",
        ([1, 2, 150], [0, 5, 17, 3], [12, 20]),
    )


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory):
    """Values of trainId from 0 to 18, and 255 for other objects."""
    return write_stripes(
        tmp_path_factory.mktemp("data") / "cityscapes",
        ("train", "val"),
        "leftImg8bit/{}/aachen/aachen_{:06d}_000019_leftImg8bit.png",
        "gtFine/{}/aachen/aachen_{:06d}_000019_gtFine_labelTrainIds.png",
        ([0, 1, 18], [255, 5, 17, 3], [11, 13]),
    )


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Three images a split, with two polygons each, and one without objects in training."""
    root = tmp_path_factory.mktemp("data") / "coco"
    rng = np.random.default_rng(0)
    names = CocoDataset.METAINFO["classes"]
    categories = [dict(id=2 * i + 1, name=name) for i, name in enumerate(names)]
    for split in ("train2017", "val2017"):
        images, annotations = [], []
        for i in range(4 if split == "train2017" else 3):
            image = rng.integers(0, 60, (*SIZE, 3), dtype=np.uint8)
            for j in range(2 if i < 3 else 0):
                left, top, side = 8 + 60 * j, 10 + 8 * i, 40 + 4 * i
                image[top : top + side, left : left + side, j] = 255
                right, bottom = left + side, top + side
                polygon = [left, top, right, top, right, bottom, left, bottom]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=categories[40 * j]["id"],
                        segmentation=[polygon],
                        bbox=[left, top, side, side],
                        area=side**2,
                        iscrowd=0,
                    )
                )
            name = f"{i:012d}.jpg"
            paint(root / split / name, image)
            images.append(dict(id=i, file_name=name, height=SIZE[0], width=SIZE[1]))
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
    return root


def train(config, work_dir, options):
    """Train for two iterations, validate, and return the checkpoint."""
    run_tool("tools/train.py", config, "--work-dir", work_dir, "--cfg-options", *options)
    assert {"mIoU", "coco/segm_mAP"} & set().union(*read_scalars(work_dir))
    return work_dir / "iter_2.pth"


def evaluate(config, checkpoint, work_dir, options, *arguments):
    output = run_tool(
        *("tools/test.py", config, checkpoint, "--work-dir", work_dir, *arguments),
        *("--cfg-options", *options),
    )
    # Whatever wraps the model, the checkpoint fits.
    assert "Load checkpoint" in output and "do not match" not in output
    return read_metrics(work_dir)


def without_pipeline(options):
    """Options without those of the test pipeline, which ``--tta`` replaces."""
    return [option for option in options if "test_dataloader.dataset.pipeline" not in option]


@pytest.fixture(scope="module")
def trained_on_ade20k(ade20k, tmp_path_factory):
    options = [*QUICK_SEGMENTOR, *loader_options(ade20k)]
    return train(ADE20K, tmp_path_factory.mktemp("work_dirs"), options), options


def test_ade20k_by_sliding_windows(trained_on_ade20k, tmp_path):
    checkpoint, options = trained_on_ade20k
    scores = evaluate(
        *(ADE20K, checkpoint, tmp_path, [*options, *SLIDE]),
        *("--out", tmp_path / "label_maps", "--show-dir", "images"),
    )
    assert 0 <= scores["mIoU"] <= 100
    maps = sorted((tmp_path / "label_maps").glob("*.png"))
    assert len(maps) == 3
    for path in maps:
        label_map = np.asarray(Image.open(path))
        assert label_map.shape == SIZE
        # Labels of the data set, where 0 is no class.
        assert 1 <= label_map.min() <= label_map.max() <= 150
    assert len(list(tmp_path.glob("*/images/*.png"))) == 3


def test_cityscapes_by_sliding_windows_with_augmentation(cityscapes, tmp_path):
    options = [*QUICK_SEGMENTOR, *loader_options(cityscapes)]
    checkpoint = train(CITYSCAPES, tmp_path / "train", options)
    options = [*without_pipeline(options), *SLIDE, "model.test_cfg.stride=(64,64)"]
    options.append("test_dataloader.dataset.indices=1")  # 12 versions of one image
    scores = evaluate(CITYSCAPES, checkpoint, tmp_path / "test", options, "--tta")
    assert 0 <= scores["mIoU"] <= 100


def test_coco_instances(coco, tmp_path):
    annotations = coco / "annotations/instances_val2017.json"
    options = [
        *QUICK,
        *loader_options(coco),
        *(
            f"{split}_evaluator.{i}.ann_file={annotations}"
            for split in ("val", "test")
            for i in "01"
        ),
        "model.panoptic_head.in_channels=512",
        "model.panoptic_head.transformer_decoder.num_layers=1",
        "model.train_cfg.num_points=64",
        "train_dataloader.dataset.pipeline.5.size=(128,128)",
        "train_dataloader.dataset.pipeline.3.scale=(128,128)",
        "train_dataloader.dataset.pipeline.4.crop_size=(128,128)",
        "val_dataloader.dataset.pipeline.1.scale=(160,96)",
        "test_dataloader.dataset.pipeline.1.scale=(160,96)",
    ]
    checkpoint = train(COCO_INSTANCE, tmp_path / "train", options)
    dump = tmp_path / "predictions.pkl"
    scores = evaluate(COCO_INSTANCE, checkpoint, tmp_path / "test", options, "--out", dump)
    expected = {f"coco/segm_mAP{part}" for part in ("", "_s", "_m", "_l")} | {"coco/boundary_mAP"}
    assert expected <= set(scores)
    assert dump.stat().st_size > 0


@pytest.fixture
def functions():
    """The functions of tools/test.py."""
    return runpy.run_path(str(ROOT / "tools/test.py"))


def test_augmentation_needs_its_model(functions):
    config = Config.fromfile(ROOT / COCO_INSTANCE)
    config.pop("tta_model")
    with pytest.raises(InputError, match=r"expected tta_model and tta_pipeline in .* no tta_model"):
        functions["augment"](config)


def test_label_maps_need_their_metric(functions):
    config = Config.fromfile(ROOT / ADE20K)
    config.test_evaluator.type = "mmseg.DepthMetric"
    with pytest.raises(InputError, match=r"expected a mmseg\.IoUMetric"):
        functions["write_label_maps"](config, "label_maps")
