"""The Shapes datasets in the pipelines and metrics of the config that trains on them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import INSTANCE_OFFSET
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData, PixelData
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

from hcformer_mm.datasets.shapes import METAINFO
from hcformer_mm.datasets.shapes_generator import FIGURES, STUFF_TEXTURES
from hcformer_mm.datasets.shapes_writer import write_shapes
from hcformer_mm.registry import DATASETS

CONFIG = Path(__file__).parents[2] / "configs/_base_/datasets/shapes_panoptic.py"
NUM_THINGS = len(FIGURES)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, num_train=4, num_val=3, seed=5, workers=1)
    return root


@pytest.fixture(scope="module")
def cfg(root):
    text = CONFIG.read_text()
    assert '"data/shapes/"' in text
    return Config.fromstring(text.replace("data/shapes/", f"{root}/"), ".py")


def test_metainfo():
    assert METAINFO["classes"] == METAINFO["thing_classes"] + METAINFO["stuff_classes"]
    assert METAINFO["thing_classes"] == tuple(FIGURES)
    assert METAINFO["stuff_classes"] == tuple(STUFF_TEXTURES)
    assert len(set(METAINFO["palette"])) == len(METAINFO["classes"]) == 10


class TestPanopticDataset:
    def test_training_samples(self, cfg):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        assert len(dataset) == 4
        assert dataset.metainfo["classes"] == METAINFO["classes"]
        for packed in dataset:
            image, sample = packed["inputs"], packed["data_samples"]
            assert image.shape[0] == 3
            height, width = image.shape[1:]
            assert max(height / 192, width / 256) == 1.0
            assert min(height / 192, width / 256) > 0.8
            instances = sample.gt_instances
            assert 2 <= len(instances) <= 8
            assert instances.masks.masks.shape[1:] == (height, width)
            semantic = sample.gt_sem_seg.sem_seg[0].numpy()
            assert semantic.shape == (height, width)
            # Masks and the semantic map are resized alike, so they agree to the pixel.
            for mask, label in zip(instances.masks.masks, instances.labels, strict=True):
                assert mask.any()
                assert (semantic[mask.astype(bool)] == int(label)).all()
            is_thing = instances.masks.masks.any(0)
            assert (semantic[~is_thing] >= NUM_THINGS).all()
            assert (semantic < 10).all()

    def test_validation_samples_keep_the_labels_at_the_original_size(self, cfg, root):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        for packed in dataset:
            sample = packed["data_samples"]
            name = Path(sample.img_path).stem
            semantic = np.asarray(Image.open(root / "semantic" / "val" / f"{name}.png"))
            np.testing.assert_array_equal(sample.gt_sem_seg.sem_seg[0].numpy(), semantic)
            assert sample.ori_shape == semantic.shape
            assert sample.img_shape == packed["inputs"].shape[1:]
            assert "masks" not in sample.gt_instances


class TestMetrics:
    """Ground truth as prediction, or a known corruption of it, gives known scores."""

    @staticmethod
    def predict(sample, root, *, relabel=lambda label: label):
        """Put the annotations into the sample as predictions."""
        folder = root / "annotations"
        panoptic = json.loads((folder / "panoptic_val.json").read_text())
        annotation = next(a for a in panoptic["annotations"] if a["image_id"] == sample.img_id)
        ids = rgb2id(np.asarray(Image.open(folder / "panoptic_val" / annotation["file_name"])))
        semantic = np.full(ids.shape, 255)
        result = np.full(ids.shape, len(METAINFO["classes"]))
        for number, info in enumerate(annotation["segments_info"]):
            label = relabel(info["category_id"] - 1)
            semantic[ids == info["id"]] = label
            result[ids == info["id"]] = label + INSTANCE_OFFSET * number
        coco = COCO(str(folder / "instances_val.json"))
        instances = coco.imgToAnns[sample.img_id]
        boxes = torch.tensor([a["bbox"] for a in instances])
        sample.pred_panoptic_seg = PixelData(sem_seg=torch.from_numpy(result)[None])
        sample.pred_sem_seg = PixelData(sem_seg=torch.from_numpy(semantic)[None])
        sample.pred_instances = InstanceData(
            bboxes=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1),
            labels=torch.tensor([relabel(a["category_id"] - 1) for a in instances]),
            scores=torch.ones(len(instances)),
            masks=torch.from_numpy(np.stack([coco.annToMask(a) for a in instances])).bool(),
        )
        return sample

    def evaluate(self, cfg, root, **kwargs):
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        for packed in dataset:
            evaluator.process([self.predict(packed["data_samples"], root, **kwargs)])
        return evaluator.evaluate(len(dataset))

    def test_ground_truth_is_perfect(self, cfg, root):
        scores = self.evaluate(cfg, root)
        for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
            assert scores[f"coco_panoptic/{key}"] == pytest.approx(100.0)
        assert scores["coco/segm_mAP"] == pytest.approx(1.0)
        assert scores["sem_seg/mIoU"] == pytest.approx(100.0)
        assert scores["sem_seg/aAcc"] == pytest.approx(100.0)

    def test_confused_things_cost_only_things(self, cfg, root):
        """With every thing taken for one of the next class, stuff stays perfect and AP is zero."""
        scores = self.evaluate(
            cfg, root, relabel=lambda n: (n + 1) % NUM_THINGS if n < NUM_THINGS else n
        )
        assert scores["coco_panoptic/PQ_st"] == pytest.approx(100.0)
        assert scores["coco_panoptic/PQ_th"] == 0.0
        assert scores["coco/segm_mAP"] == 0.0
        assert 0.0 < scores["sem_seg/mIoU"] < 100.0


def test_instance_dataset_sees_the_same_things(cfg, root):
    """Run-length masks of the instance file equal the panoptic map's."""
    dataset = DATASETS.build(
        dict(
            type="hcformer_mm.ShapesInstanceDataset",
            data_root=str(root),
            ann_file="annotations/instances_train.json",
            data_prefix=dict(img="train/"),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
                dict(type="mmdet.PackDetInputs"),
            ],
        )
    )
    assert dataset.metainfo["classes"] == METAINFO["thing_classes"]
    panoptic = DATASETS.build(
        dict(
            cfg.train_dataloader.dataset,
            pipeline=[
                step
                for step in cfg.train_pipeline
                if "Resize" not in step.type and "Flip" not in step.type
            ],
        )
    )
    assert len(dataset) == len(panoptic) == 4
    for ours, theirs in zip(dataset, panoptic, strict=True):
        ours, theirs = (packed["data_samples"].gt_instances for packed in (ours, theirs))
        assert torch.equal(ours.labels, theirs.labels)
        np.testing.assert_array_equal(ours.masks.masks, theirs.masks.masks)
        assert torch.equal(ours.bboxes.tensor, theirs.bboxes.tensor)


def test_semantic_dataset_sees_the_same_labels(root):
    dataset = DATASETS.build(
        dict(
            type="hcformer_mm.ShapesSemanticDataset",
            data_root=str(root),
            data_prefix=dict(img_path="train", seg_map_path="semantic/train"),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="mmseg.LoadAnnotations"),
                dict(type="mmseg.PackSegInputs"),
            ],
        )
    )
    assert len(dataset) == 4
    assert dataset.metainfo["classes"] == METAINFO["classes"]
    for packed in dataset:
        sample = packed["data_samples"]
        labels = sample.gt_sem_seg.data[0].numpy()
        assert packed["inputs"].shape[1:] == labels.shape
        name = Path(sample.img_path).stem
        expected = np.asarray(Image.open(root / "semantic" / "train" / f"{name}.png"))
        np.testing.assert_array_equal(labels, expected)
