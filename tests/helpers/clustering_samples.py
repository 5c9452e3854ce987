"""Predicted samples with clusters and every kind of ground truth, and their evaluation."""

import json

import mmcv
import numpy as np
import torch
from mmdet.structures.mask import mask2bbox
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData, PixelData
from panopticapi.utils import rgb2id
from PIL import Image

from hcformer_mm.datasets.shapes import METAINFO
from hcformer_mm.datasets.shapes_writer import write_shapes
from hcformer_mm.structures.image_clusters import ImageClusters

NUMBER = 5
CLASSES = METAINFO["classes"]
THINGS = len(METAINFO["thing_classes"])


def write_samples(folder):
    """Write the Shapes set behind the samples, with some void and one crowd."""
    write_shapes(folder / "shapes", num_train=1, num_val=NUMBER, size=(64, 96), workers=1)
    file = folder / "shapes/annotations/panoptic_val.json"
    content = json.loads(file.read_text())
    for index, annotation in enumerate(content["annotations"]):
        segments = annotation["segments_info"]
        if index == 1:
            path = folder / "shapes/annotations/panoptic_val" / annotation["file_name"]
            png = np.array(Image.open(path))
            png[rgb2id(png) == segments.pop(0)["id"]] = 0
            Image.fromarray(png).save(path)
        if index == 2:
            segments[0]["iscrowd"] = 1
    file.write_text(json.dumps(content))


def samples(folder):
    """Dicts as metrics receive them, whose predictions are the shifted ground truth with errors."""
    content = json.loads((folder / "shapes/annotations/panoptic_val.json").read_text())
    annotations = {annotation["image_id"]: annotation for annotation in content["annotations"]}
    return [sample(folder, image, annotations[image["id"]]) for image in content["images"]]


def sample(folder, image, annotation):
    random = np.random.default_rng(image["id"])
    generator = torch.Generator().manual_seed(image["id"])
    size = (image["height"], image["width"])
    png = folder / "shapes/annotations/panoptic_val" / annotation["file_name"]
    ids = rgb2id(mmcv.imread(str(png), channel_order="rgb"))
    segments = annotation["segments_info"]
    truth = np.full(size, 255)
    predicted = np.full(size, len(CLASSES))
    semantic = np.full(size, random.integers(len(CLASSES)))
    masks, labels = [], []
    for number, info in enumerate(segments, start=1):
        label = info["category_id"] - 1
        truth[ids == info["id"]] = label
        mask = np.roll(ids == info["id"], random.integers(-2, 3, size=2), axis=(0, 1))
        if random.random() < 0.15:
            label = (label + 1) % len(CLASSES)
        semantic[mask] = label
        if random.random() < 0.85:
            predicted[mask] = label + 1000 * number * (label < THINGS)
            if label < THINGS:
                masks.append(mask)
                labels.append(label)
    masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *size))
    cells = [tuple(-(-side // (4 * 2**level)) for side in size) for level in range(3)]
    return dict(
        img_id=image["id"],
        img_path=str(folder / "shapes/val" / image["file_name"]),
        ori_shape=size,
        clusters=ImageClusters(
            tuple(torch.rand(9, *side, generator=generator) for side in cells), 4, size, size
        ),
        gt_sem_seg=PixelData(sem_seg=torch.from_numpy(truth[None])).to_dict(),
        pred_sem_seg=PixelData(sem_seg=torch.from_numpy(semantic[None])).to_dict(),
        pred_panoptic_seg=PixelData(sem_seg=torch.from_numpy(predicted[None])).to_dict(),
        pred_instances=InstanceData(
            masks=masks,
            bboxes=mask2bbox(masks),
            labels=torch.tensor(labels, dtype=torch.long),
            scores=torch.rand(len(labels), generator=generator),
        ).to_dict(),
    )


def metric(folder, ground_truth="panoptic", **options):
    """Config of a ClusteringMetric for the samples."""
    annotations = folder / "shapes/annotations"
    files = dict(
        panoptic=dict(
            ann_file=str(annotations / "panoptic_val.json"),
            seg_prefix=str(annotations / "panoptic_val"),
        ),
        instance=dict(ann_file=str(annotations / "instances_val.json")),
        semantic=dict(),
    )[ground_truth]
    return dict(type="hcformer_mm.ClusteringMetric", ground_truth=ground_truth, **files, **options)


def evaluate(metrics, samples, size=None, *, classes=CLASSES):
    """Evaluate samples in batches of one."""
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = {**METAINFO, "classes": classes}
    for one in samples:
        evaluator.process([one])
    return evaluator.evaluate(size or len(samples))
