"""Models of any config: found, built without pretrained weights, prepared and called."""

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.apis.benchmark_model import model_call
from hcformer_mm.apis.fast_inference import fold_batch_norm, to_channels_last
from hcformer_mm.apis.model_loading import build_model, find_config
from hcformer_mm.models.downsampling import DeformableDownsampling
from tests.models import SHAPES_CONFIG, backbone

FCN = "mmseg::fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py"
MASKFORMER = "mmdet::maskformer/maskformer_r50_ms-16xb1-75e_coco.py"
SHAPE = (64, 96)


def build(name, **options):
    return build_model(Config.fromfile(find_config(name)), **options)


def randomise_statistics(model):
    """Give every BatchNorm statistics and factors of its own."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0.0, 0.1)


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


def test_segmentors_predict_without_synchronised_normalisation(fcn):
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


def test_the_picture_is_the_same_for_all_models_and_normalised(fcn, hcformer):
    pictures = []
    for model in (fcn, hcformer):
        handle = model.backbone.register_forward_pre_hook(lambda _, args: pictures.append(args[0]))
        model_call(model, SHAPE, mode="forward", seed=3)()
        model_call(model, SHAPE, mode="predict", seed=3)()
        handle.remove()
    # Of both models, the one of mmseg and the one of mmdet, mean and deviation are ImageNet's.
    for picture in pictures[1:]:
        torch.testing.assert_close(picture, pictures[0])
    assert pictures[0].mean().abs() < 1 and 1 < pictures[0].std() < 2


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


def test_model_that_needs_more_than_a_picture(hcformer, monkeypatch):
    def forward(inputs, data_samples, mode):
        return data_samples[0].text

    monkeypatch.setattr(hcformer, "forward", forward)
    with pytest.raises(
        RuntimeError, match=r"MaskFormer does not run \(predict, .* of 64x96: .*text"
    ):
        model_call(hcformer, SHAPE)()


@pytest.mark.parametrize("name", ["hcformer", "fcn"])
def test_folding_keeps_outputs_and_leaves_no_batch_norm(name):
    model = build({"hcformer": SHAPES_CONFIG, "fcn": FCN}[name])
    randomise_statistics(model)
    # Offsets that move: folding must not touch what predicts them.
    for module in model.modules():
        if isinstance(module, DeformableDownsampling):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    model.double()
    image = torch.randn(1, 3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        expected = model.backbone(image)
        assert any(isinstance(module, _BatchNorm) for module in model.modules())
        fold_batch_norm(model)
        folded = model.backbone(image)
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    torch.testing.assert_close(tuple(folded), tuple(expected), rtol=1e-9, atol=1e-9)
    if name == "hcformer":
        assert len(folded.assignments) == 3
        torch.testing.assert_close(folded.assignments, expected.assignments, rtol=1e-9, atol=1e-9)


def test_channels_last_keeps_outputs(fcn):
    expected = model_call(fcn, SHAPE, mode="forward")()
    model = to_channels_last(build(FCN))
    logits = model_call(model, SHAPE, mode="forward", channels_last=True)()
    assert logits.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_is_refused_where_mmcv_would_compute_nonsense():
    to_channels_last(backbone())  # has deformable convolutions of ours
    with pytest.raises(ValueError, match=r"expected no deformable convolution of mmcv.*got '0'"):
        to_channels_last(nn.Sequential(ModulatedDeformConv2dPack(3, 4, 3)))


def test_maskformer_of_mmdet():
    model = build(MASKFORMER)
    (result,) = model_call(model, SHAPE)()
    assert result.pred_panoptic_seg.sem_seg.shape == (1, *SHAPE)
    class_logits, _ = model_call(model, SHAPE, mode="forward")()
    assert class_logits[-1].shape == (1, 100, 134)
