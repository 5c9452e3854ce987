"""Resizing: things that vanish, and images that become empty; whole training pipelines."""

import json
import warnings
from copy import deepcopy

import cv2
import numpy as np
import pytest
from mmcv.image import geometric
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from hcformer_mm.datasets import (
    LoadImageFromFile,
    LoadInstanceAnnotations,
    LoadPanopticAnnotations,
    Resize,
    ResizeShortestEdge,
)
from tests.helpers.pipelines import TINY
from tests.test_configs import CONFIGS, read


def training_pipelines(*scopes):
    """Different training pipelines of the leaf configs: for each, a config that has it."""
    found = {}
    for path in CONFIGS:
        config = read(path)
        if config.default_scope in scopes:
            found.setdefault(json.dumps(config.train_dataloader.dataset.pipeline), path)
    return list(found.values())


STOCK = dict(
    LoadImageFromFile="LoadImageFromFile",
    LoadSemanticAnnotations="mmseg.LoadAnnotations",
    LoadPanopticAnnotations="mmdet.LoadPanopticAnnotations",
    LoadInstanceAnnotations="mmdet.LoadAnnotations",
    Resize="mmdet.Resize",
    ResizeShortestEdge="mmseg.ResizeShortestEdge",
)


def stock(steps):
    """The steps of mmcv, mmdet and mmseg in place of those of this package."""
    steps = deepcopy(steps)
    for step in steps:
        for key in ("type", "resize_type"):
            if key in step:
                scope, _, name = step[key].rpartition(".")
                step[key] = STOCK[name] if scope == "hcformer_mm" else step[key]
    # mmdet's panoptic pipelines do not filter.
    return [step for step in steps if not step.get("by_mask") or step.get("by_box", True)]


def run_pipeline(config, steps, entry, seed=0):
    """Run a pipeline on a copy of an entry, and return the result and the next random number."""
    entry = json.loads(json.dumps(entry))
    entry["reduce_zero_label"] = any(step.get("reduce_zero_label") for step in steps)
    np.random.seed(seed)
    with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(config.default_scope):
        warnings.filterwarnings("ignore", "`reduce_zero_label` will be deprecated")
        result = Compose(steps)(entry)
    return result, np.random.random()


@pytest.mark.parametrize("path", training_pipelines("mmdet"))
def test_no_empty_mask_reaches_the_loss(path, tiny):
    config = read(path)
    steps = config.train_dataloader.dataset.pipeline
    handed = []
    for seed in range(2):
        with pytest.warns(
            UserWarning, match=rf"of {TINY + 1} objects of .*image\.jpg have no pixel"
        ):
            result, _ = run_pipeline(config, steps, tiny["mmdet"], seed)
        sample = result["data_samples"]
        handed.append(len(sample.gt_instances.labels))
        masks = sample.gt_instances.masks
        assert len(masks) == len(sample.gt_instances.bboxes) == handed[-1]
        assert (masks.areas > 0).all()
        if "panoptic" in path:
            assert 7 in sample.gt_sem_seg.sem_seg
    assert 1 <= max(handed) <= TINY


@pytest.mark.parametrize("path", training_pipelines("mmdet", "mmseg"))
def test_samples_of_clean_data_are_those_of_the_stock_steps(path, tiny, monkeypatch):
    """But for labels, which mmcv reads at the corners of pixels, and the antialiasing of Pillow."""
    monkeypatch.setitem(geometric.cv2_interp_codes, "nearest", cv2.INTER_NEAREST_EXACT)
    config = read(path)
    steps = config.train_dataloader.dataset.pipeline
    for step in steps:
        step.pop("backend", None)  # mmseg's ResizeShortestEdge has none
    entry = dict(tiny[config.default_scope])
    for key in ("instances", "segments_info"):
        if key in entry:
            entry[key] = entry[key][:2] if key == "segments_info" else entry[key][:1]
    ours, number = run_pipeline(config, steps, entry)
    theirs, expected = run_pipeline(config, stock(steps), entry)
    assert number == expected
    assert (ours["inputs"] == theirs["inputs"]).all()
    ours, theirs = ours["data_samples"], theirs["data_samples"]
    assert ours.all_keys() == theirs.all_keys()
    if "gt_sem_seg" in ours:
        (key,) = ours.gt_sem_seg.keys()
        labels, expected = (getattr(sample.gt_sem_seg, key) for sample in (ours, theirs))
        assert labels.dtype == expected.dtype
        assert (labels == expected).all()
    if "gt_instances" in ours:
        assert len(ours.gt_instances.labels) == 1
        assert (ours.gt_instances.labels == theirs.gt_instances.labels).all()
        assert (ours.gt_instances.bboxes.tensor == theirs.gt_instances.bboxes.tensor).all()
        assert (ours.gt_instances.masks.masks == theirs.gt_instances.masks.masks).all()


@pytest.mark.parametrize("size", [(5, 7), (13, 9), (20, 30), (41, 17)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_labels_are_read_at_the_centers_of_pixels(size, dtype):
    labels = np.random.default_rng(0).integers(200, size=(13, 10)).astype(dtype)
    rows, cols = (
        (np.arange(new) + 0.5) * old / new for new, old in zip(size, labels.shape, strict=True)
    )
    expected = labels[np.ix_(rows.astype(int), cols.astype(int))]
    masks = BitmapMasks([(labels > 100).astype(np.uint8)], *labels.shape)
    results = dict(img=np.zeros((13, 10, 3), np.uint8), gt_masks=masks, gt_seg_map=labels)
    results = Resize(scale=size[::-1])(results)
    assert results["gt_seg_map"].dtype == dtype
    assert (results["gt_seg_map"] == expected).all()
    assert (results["gt_masks"].masks[0] == (expected > 100)).all()


def test_ignored_masks_are_no_loss(tiny):
    """Polygons of two points and none at all are ignored by mmdet; nothing is said of them here."""
    entry = json.loads(json.dumps(tiny["mmdet"]))
    for instance, mask in zip(entry["instances"][1:], ([[1, 1, 5, 5]], [], [[]]), strict=False):
        instance["mask"] = mask
    entry["instances"] = entry["instances"][:4]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = LoadImageFromFile()(entry)
        result = LoadInstanceAnnotations(with_bbox=True, with_mask=True)(result)
        result = Resize(scale=(256, 192), keep_ratio=True)(result)
    assert len(result["gt_masks"]) == len(result["gt_bboxes"]) == 1
    assert result["gt_ignore_flags"].tolist() == [False]


def test_an_image_is_kept_when_all_its_things_vanish(tiny):
    entry = json.loads(json.dumps(tiny["mmdet"]))
    entry["segments_info"].pop(1)
    entry["instances"].pop(0)
    config = read("configs/shapes/hcformer_r18_shapes-panoptic.py")
    steps = config.train_dataloader.dataset.pipeline
    with pytest.warns(UserWarning, match="10 of 10 objects of .* have no pixel left at .192, 256."):
        result, _ = run_pipeline(config, steps, entry)
    assert len(result["data_samples"].gt_instances.masks) == 0
    assert result["inputs"].shape == (3, 192, 256)


def test_the_first_image_alone_is_warned_of(tiny):
    step = Resize(scale=(256, 192), keep_ratio=True)
    loaders = [LoadImageFromFile(), LoadPanopticAnnotations()]
    with pytest.warns(UserWarning) as warned:
        for _ in range(3):
            results = json.loads(json.dumps(tiny["mmdet"]))
            for loader in loaders:
                results = loader(results)
            step(results)
    assert len(warned) == 1


def test_polygons_of_an_area_are_kept():
    masks = PolygonMasks([[np.array([1.0, 1, 2, 1, 2, 2])], [np.array([3.0, 3, 3, 3, 3, 3])]], 8, 8)
    results = dict(
        img=np.zeros((8, 8, 3), np.uint8), img_path="a", ori_shape=(8, 8), gt_masks=masks
    )
    with pytest.warns(UserWarning, match="1 of 2 objects"):
        assert len(Resize(scale=(4, 4))(results)["gt_masks"]) == 1


@pytest.mark.parametrize(
    "step",
    [
        Resize(scale=(256, 192), keep_ratio=True),
        Resize(scale_factor=0.2),
        ResizeShortestEdge(scale=512, max_size=300),
    ],
)
@pytest.mark.parametrize("size", [(1500, 2), (2, 1500)])
def test_images_that_become_empty_are_refused(step, size):
    results = dict(img=np.zeros((*size, 3), np.uint8), img_path="strip.jpg", seg_fields=[])
    with pytest.raises(
        ValueError, match=r"strip\.jpg, \d+ × \d+ pixels, becomes \d+ × \d+; cut it"
    ):
        step(results)


@pytest.mark.parametrize("size", [(1, 1), (40, 2000), (2000, 40), (1, 30)])
def test_small_and_long_images_are_resized(size):
    results = dict(img=np.zeros((*size, 3), np.uint8), img_path="a.jpg", seg_fields=[])
    assert min(Resize(scale=(256, 192), keep_ratio=True)(results)["img_shape"]) >= 1
