"""Models of any config: found, built without pretrained weights, prepared and called."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import nn

from benchmarks.models import confident_class_logits, keep_queries
from hcformer_mm.apis.inference import build_model
from hcformer_mm.models.utils.post_processing import panoptic_queries
from hcformer_mm.utils.config import find_config
from hcformer_mm.utils.random_inputs import model_call
from tests.helpers.models import SHAPES_CONFIG

FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
MASKFORMER = "mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py"
MASK2FORMER = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"
SHAPE = (64, 96)


def build(name, **options):
    return build_model(Config.fromfile(find_config(name)), **options)


@pytest.fixture(scope="module")
def hcformer():
    return build(SHAPES_CONFIG)


@pytest.fixture(scope="module")
def fcn():
    return build(FCN)


def test_detectors_predict(hcformer):
    (result,) = model_call(hcformer, SHAPE)()
    assert isinstance(result, DetDataSample)
    assert result.pred_panoptic_seg.sem_seg.shape == (1, *SHAPE)


def test_segmentors_predict_without_synchronized_normalisation(fcn):
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in fcn.modules())
    (result,) = model_call(fcn, SHAPE)()
    assert isinstance(result, SegDataSample)
    assert result.pred_sem_seg.shape == SHAPE


def test_modes(fcn):
    features = model_call(fcn, SHAPE, mode="backbone")()
    logits = model_call(fcn, SHAPE, mode="forward")()
    assert [feature.shape[1] for feature in features] == [64, 128, 256, 512]
    assert logits.shape == (1, 19, SHAPE[0] // 8, SHAPE[1] // 8)
    assert logits.is_inference()
    assert model_call(fcn, SHAPE, mode="forward", dtype=torch.bfloat16)().dtype == torch.bfloat16


def test_the_image_is_the_same_for_all_models_and_normalized(fcn, hcformer):
    images = []
    for model in (fcn, hcformer):
        handle = model.backbone.register_forward_pre_hook(lambda _, args: images.append(args[0]))
        model_call(model, SHAPE, mode="forward", seed=3)()
        model_call(model, SHAPE, mode="predict", seed=3)()
        handle.remove()
    # Of both models, the one of mmseg and the one of mmdet, mean and deviation are ImageNet's.
    for image in images[1:]:
        torch.testing.assert_close(image, images[0])
    assert images[0].mean().abs() < 1 and 1 < images[0].std() < 2


def test_weights_are_those_of_the_seed_or_of_a_checkpoint(hcformer, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(dict(state_dict=build(SHAPES_CONFIG, seed=1).state_dict()), path)
    models = (
        build(SHAPES_CONFIG),
        build(SHAPES_CONFIG, seed=1),
        build(SHAPES_CONFIG, checkpoint=path),
    )
    again, other, loaded = (model.state_dict() for model in models)
    name = "backbone.backbone.conv1.weight"
    assert torch.equal(hcformer.state_dict()[name], again[name])
    assert not torch.equal(other[name], again[name])
    assert torch.equal(other[name], loaded[name])


def test_checkpoint_of_another_model(hcformer, tmp_path):
    torch.save(hcformer.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth does not fit .*fcn_r18"):
        build(FCN, checkpoint=tmp_path / "weights.pth")


def test_config_of_another_kind_of_model():
    with pytest.raises(ValueError, match=r"expected a detector of mmdet or .*got ResNet"):
        build_model(Config(dict(model=dict(type="mmdet.ResNet", depth=18))))
    with pytest.raises(ValueError, match="expected a config with a model"):
        build_model(Config(dict(dataset=dict())))


def test_model_that_needs_more_than_a_image(hcformer, monkeypatch):
    def forward(inputs, data_samples, mode):
        return data_samples[0].text

    monkeypatch.setattr(hcformer, "forward", forward)
    with pytest.raises(
        RuntimeError, match=r"MaskFormer does not run \(predict, .* of 64x96: .*text"
    ):
        model_call(hcformer, SHAPE)()


def test_maskformer_of_mmdet():
    model = build(MASKFORMER)
    (result,) = model_call(model, SHAPE)()
    assert result.pred_panoptic_seg.sem_seg.shape == (1, *SHAPE)
    class_logits, _ = model_call(model, SHAPE, mode="forward")()
    assert class_logits[-1].shape == (1, 100, 134)


def test_confident_queries_are_spread_over_queries_and_classes():
    logits = confident_class_logits(10, 5, 4)
    scores, classes = logits.softmax(dim=-1).max(dim=-1)
    assert logits.shape == (10, 5) and (scores > 0.99).all()
    assert classes[1::2].tolist() == [4] * 5  # "no object"
    assert sorted(classes[::2].tolist()) == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("name", [SHAPES_CONFIG, MASKFORMER, MASK2FORMER])
def test_kept_queries(name):
    model = build(name)
    fusion, seen = model.panoptic_fusion_head, []
    original = fusion.panoptic_postprocess if name != SHAPES_CONFIG else fusion._results

    def watch(class_logits, *args, **options):
        kept, _, _ = panoptic_queries(class_logits, fusion.test_cfg, fusion.num_classes)
        seen.append(int(kept.sum()))
        return original(class_logits, *args, **options)

    setattr(fusion, original.__name__, watch)
    call = model_call(model, SHAPE)
    call()
    for number in (7, 0):
        handle = keep_queries(model, number)
        call()
        handle.remove()
    call()
    assert seen == [0, 7, 0, 0]  # random weights are sure of nothing


def test_queries_to_keep_need_a_mask_transformer(fcn, hcformer):
    with pytest.raises(ValueError, match=r"linear panoptic_head.cls_embed .* got EncoderDecoder"):
        keep_queries(fcn, 3)
    queries = hcformer.panoptic_head.num_queries
    with pytest.raises(ValueError, match=f"expected at most {queries} queries to keep, got 101"):
        keep_queries(hcformer, 101)
