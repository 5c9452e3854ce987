"""Nuclei: a watershed as a model of MMEngine, and PQ with one class for all things."""

import json
import sys

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb
from skimage.draw import ellipse

from benchmarks import nuclei
from hcformer_mm.datasets.panoptic_writer import (
    AnnotatedImage,
    coco_categories,
    write_panoptic_set,
)
from hcformer_mm.structures.panoptic import Panoptic

CONFIG = "configs/nuclei/hcformer_r18_nuclei-panoptic.py"
THINGS, STUFF = ("neoplastic", "inflammatory", "connective"), ("tissue", "glass")
TISSUE = 9


def tile(name):
    """Six separate nuclei on pink tissue; those of a class are alike."""
    random = np.random.default_rng(sum(map(ord, name)))
    stain = np.full((256, 256, 3), (0.01, 0.05, 0.0)) + random.normal(0, 0.003, (256, 256, 3))
    segments = np.full((256, 256), TISSUE)
    labels = {TISSUE: len(THINGS)}
    for number in range(6):
        labels[number + 1] = number % 3
        center = (64 + 128 * (number // 3), 44 + 84 * (number % 3))
        inside = ellipse(*center, 20 + 7 * (number % 3), 18 + 7 * (number % 3))
        stain[..., 0][inside] += 0.15
        segments[inside] = number + 1
    pixels = (255 * hed2rgb(np.clip(stain, 0, 1))).astype(np.uint8)
    return AnnotatedImage(f"{name}.jpg", pixels, Panoptic(segments, labels))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "nuclei"
    splits = dict(train=["a", "b"], val=["c", "d"])
    write_panoptic_set(out, splits, tile, coco_categories(THINGS, STUFF))
    return out


def test_watershed_is_scored_by_the_evaluators_of_the_config(data, tmp_path, monkeypatch):
    options = [
        f"{split}_dataloader.{option}"
        for split in ("train", "val", "test")
        for option in (f"dataset.data_root={data}/", "num_workers=0", "persistent_workers=False")
    ]
    annotations = f"{data}/annotations"
    options += [
        f"test_evaluator.0.ann_file={annotations}/panoptic_val.json",
        f"test_evaluator.0.seg_prefix={annotations}/panoptic_val/",
        f"test_evaluator.1.ann_file={annotations}/instances_val.json",
        f"test_evaluator.2.ann_file={annotations}/instances_val.json",
    ]
    command = ["nuclei.py", CONFIG, "--work-dir", tmp_path, "--cfg-options", *options]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    monkeypatch.setattr(nuclei, "TRAINING_STEP", 1)
    monkeypatch.setattr(nuclei, "NEIGHBORS", 1)
    monkeypatch.chdir(nuclei.__file__.rpartition("/benchmarks/")[0])
    nuclei.main()
    (log,) = (path for path in tmp_path.glob("*/*.json") if path.stem == path.parent.name)
    scores = json.loads(log.read_text())
    assert scores["coco_panoptic/RQ_th"] == scores["class_agnostic/RQ_th"] == 100
    assert scores["coco_panoptic/SQ_th"] > 70
    assert scores["coco/segm_mAP_50"] == 1


def test_one_class_for_all_things(data):
    """Exact segments with wrong classes: no PQ of things, and all of it without classes."""
    prefix = f"{data}/annotations/panoptic_val"
    options = dict(ann_file=f"{prefix}.json", seg_prefix=f"{prefix}/")
    truth = tile("c").panoptic
    wrong = np.full((256, 256), len(THINGS))
    for number, label in truth.categories.items():
        if label < len(THINGS):
            wrong[truth.segments == number] = (label + 1) % 3 + 1000 * number
    prediction = dict(sem_seg=torch.from_numpy(wrong)[None])
    sample = dict(img_id=1, ori_shape=(256, 256), pred_panoptic_seg=prediction)
    scores = {}
    for metric in (
        nuclei.CocoPanopticMetric(**options),
        nuclei.ClassAgnosticPanopticMetric(**options),
    ):
        metric.dataset_meta = dict(classes=(*THINGS, *STUFF))
        metric.process(None, [sample])
        scores[type(metric)] = metric.compute_metrics(metric.results)
    strict, merged = scores.values()
    assert (strict["PQ_th"], merged["PQ_th"]) == (0, 100)
    assert strict["PQ_st"] == merged["PQ_st"]
