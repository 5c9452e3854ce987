"""Thresholds and confidence as arguments of the inferencers."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from panopticapi.evaluation import pq_compute
from PIL import Image

from hcformer_mm.apis import ClusterInferencer, HCFormerInferencer
from hcformer_mm.apis.inference import result_config
from hcformer_mm.models.utils.post_processing import semantic_confidence
from tests.helpers.devices import on_each_device
from tests.helpers.models import SEMANTIC_CONFIG

INSTANCE_CONFIG = "configs/shapes/hcformer_r18_shapes-instance.py"
FCN_CONFIG = "configs/shapes/hc-fcn32s_r18_shapes-semantic.py"
OPTIONS = dict(object_mask_thr=0.99, iou_thr=0.2, max_per_image=7)


@pytest.fixture(scope="module")
def inferencer(model_files):
    return HCFormerInferencer(*model_files(), "cpu")


def assert_same(sample, other):
    for field in ("pred_panoptic_seg", "pred_segments", "pred_instances"):
        for key, value in other.get(field).items():
            assert torch.equal(sample.get(field).get(key), value), (field, key)


def test_options_act_as_in_a_config(inferencer, model_files, images):
    """In their call alone."""
    (before,) = inferencer(images[0])
    (found,) = inferencer(images[0], **OPTIONS)
    assert_same(inferencer(images[0])[0], before)
    changes = {f"model.test_cfg.{name}": value for name, value in OPTIONS.items()}
    by_config = HCFormerInferencer(*model_files(), "cpu", cfg_options=changes)
    assert_same(by_config(images[0])[0], found)
    assert 0 < len(found.pred_segments) < len(before.pred_segments)
    assert len(found.pred_instances) <= 7 < len(before.pred_instances)
    nothing = dict.fromkeys(OPTIONS)
    assert_same(inferencer(images[0], **nothing)[0], before)


def test_every_segment_has_its_score(inferencer, folder, tmp_path):
    """In samples and in COCO's file, which panopticapi reads."""
    samples = inferencer(folder, out_dir=tmp_path)
    content = json.loads((tmp_path / "panoptic.json").read_text())
    for sample, entry in zip(samples, content["annotations"], strict=True):
        segments = sample.pred_panoptic_seg.sem_seg
        scored = sample.pred_segments
        assert scored.ids.tolist() == [i for i in segments.unique().tolist() if i != 10]
        assert len(scored) > 1 and len(scored.scores.unique()) > 1
        assert ((scored.scores > 0) & (scored.scores <= 1)).all()
        assert [one["score"] for one in entry["segments_info"]] == scored.scores.tolist()
        categories = [one["category_id"] for one in entry["segments_info"]]
        assert categories == scored.labels.tolist()
    path = str(tmp_path / "panoptic.json")
    assert pq_compute(path, path)["All"]["pq"] == 1


def test_confidence_of_panoptic_results(inferencer, folder, tmp_path):
    samples = inferencer(folder, out_dir=tmp_path, confidence=True, batch_size=2, iou_thr=0.3)
    assert "pred_confidence" not in inferencer(folder)[0]
    for i, sample in enumerate(samples):
        confidence, segments = sample.pred_confidence.data, sample.pred_panoptic_seg.sem_seg
        assert confidence.shape == segments.shape and confidence.dtype == torch.float32
        assert torch.equal(confidence > 0, segments != 10)
        for value, score in zip(
            sample.pred_segments.ids.tolist(), sample.pred_segments.scores.tolist(), strict=True
        ):
            mean = confidence[segments == value].double().mean().item()
            assert score == pytest.approx(mean, rel=1e-5)
        written = np.asarray(Image.open(tmp_path / f"confidence/scene{i}.png"))
        assert written.dtype == np.uint8
        assert np.abs(written / 255 - confidence[0].numpy()).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("config", [SEMANTIC_CONFIG, FCN_CONFIG])
def test_confidence_of_segmentors(config, model_files, folder, images, tmp_path):
    inferencer = HCFormerInferencer(*model_files(config), "cpu")
    samples = inferencer(folder, out_dir=tmp_path, confidence=True, logits=True)
    assert "pred_confidence" not in inferencer(images[0])[0]
    for i, sample in enumerate(samples):
        maps = sample.seg_logits.data.double()
        shares = maps / maps.sum(0) if config == SEMANTIC_CONFIG else maps.softmax(0)
        confidence = sample.pred_confidence.data
        torch.testing.assert_close(confidence[0], shares.amax(0).float())
        assert (tmp_path / f"confidence/scene{i}.png").is_file()


@on_each_device
def test_confidence_of_one_class_and_without_scores():
    probabilities, classes = torch.tensor([[[0.9, 0.2, 0.4]]]), torch.tensor([[[1, 0, 1]]])
    found = semantic_confidence(probabilities, classes, are_scores=False)
    assert found.tolist() == [[pytest.approx([0.9, 0.8, 0.4])]]
    zeros = torch.zeros(3, 1, 2, dtype=torch.float16)
    found = semantic_confidence(zeros, zeros[:1], are_scores=True)
    assert found.tolist() == [[[0, 0]]] and found.dtype == torch.float32
    found = semantic_confidence(zeros + 500, zeros[:1], are_scores=False)
    assert found.tolist() == [[pytest.approx([1 / 3, 1 / 3])]]


def test_cluster_inferencer(model_files, images):
    changes = {"model.test_cfg.iou_thr": 1}
    inferencer = ClusterInferencer(*model_files(), "cpu", cfg_options=changes)
    found = [
        inferencer(images[0], **options)[0].prediction
        for options in ({}, dict(iou_thr=0.0, confidence=True))
    ]
    assert len(found[0].pred_segments) < len(found[1].pred_segments)
    assert "pred_confidence" in found[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(object_mask_thr=1.5), "expected object_mask_thr from 0 to 1, got 1.5"),
        (dict(iou_thr=float("nan")), "expected iou_thr from 0 to 1, got nan"),
        (dict(max_per_image=0), "expected max_per_image as an integer from 1 on, got 0"),
        (dict(max_per_image=2.5), "expected max_per_image as an integer from 1 on, got 2.5"),
        (dict(object_mask_thr="0.5"), "expected object_mask_thr from 0 to 1, got '0.5'"),
    ],
)
def test_options_out_of_range(options, words, inferencer, images):
    with pytest.raises(ValueError, match=words):
        inferencer(images[0], **options)
    with pytest.raises(TypeError, match="no_thr"):
        inferencer(images[0], no_thr=1)


def test_options_that_a_model_lacks(model_files, images, inferencer):
    """Of segmentors, of instances alone, and of mmdet's own heads."""
    semantic = HCFormerInferencer(*model_files(SEMANTIC_CONFIG), "cpu")
    with pytest.raises(ValueError, match=r"with iou_thr, .* EncoderDecoder with nothing"):
        semantic(images[0], iou_thr=0.5)
    instance = HCFormerInferencer(*model_files(INSTANCE_CONFIG), "cpu")
    assert len(instance(images[0], max_per_image=3)[0].pred_instances) == 3
    with pytest.raises(ValueError, match=r"with object_mask_thr, .* with max_per_image; other"):
        instance(images[0], object_mask_thr=0.5)
    with pytest.raises(ValueError, match=r"results of an HCFormerFusionHead for confidence, got"):
        instance(images[0], confidence=True)
    with pytest.raises(ValueError, match=r"with max_per_image, .* got Identity .* use cfg_options"):
        result_config(torch.nn.Identity(), max_per_image=3)
    assert result_config(torch.nn.Identity()) == {}
    with pytest.raises(ValueError, match="path of a config for cfg_options, got a Config"):
        HCFormerInferencer(Config(dict(model={})), cfg_options={"model.test_cfg.iou_thr": 1})
