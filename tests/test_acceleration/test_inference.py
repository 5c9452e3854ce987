"""Models prepared for inference predict what they predicted, and can be put back."""

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from benchmarks.device_costs import pretend_gpu
from hcformer_mm.acceleration.inference import (
    autocast_test_step,
    prepare_for_inference,
    to_channels_last,
)
from hcformer_mm.apis.inference import build_model
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from hcformer_mm.utils.config import find_config
from hcformer_mm.utils.random_inputs import random_image
from tests.helpers.conv_bn import Regions, assert_close, conv, flat, norm, norms, randomize
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG, backbone, detector
from tests.helpers.predictions import diversify, outspoken_config, scene

INSTANCE_CONFIG = "configs/shapes/hcformer_r18_shapes-instance.py"
FCN_CONFIG = "hc-fcn32s_r18_shapes-semantic"
PER_PIXEL = [
    f"{name}_shapes-semantic"
    for name in (
        *("hc-fcn32s_r18", "hc-pspnet_r18", "hc-deeplabv3_r18"),
        *("fcn32s_r18", "fpn_r18", "pspnet_r18-d8", "deeplabv3_r18-d8"),
    )
]
SHAPE = (192, 256)


def build(name):
    """The model of a config; BatchNorms, offsets and queries have values of their own."""
    model = build_model(outspoken_config(find_config(name)))
    diversify(model)
    if hasattr(model, "panoptic_head"):
        model.panoptic_head.cls_embed.weight.data *= 2  # Several queries get a segment.
    return randomize(model)


@torch.no_grad()
def logits(model, dtype=torch.float32):
    """What the network returns for a random image, under autocast unless ``dtype`` is float32."""
    batch = model.data_preprocessor(random_image(model, SHAPE), training=False)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return flat(model(**batch, mode="tensor"))


@torch.no_grad()
def predict(model):
    """Segments or label map, and instances, of an image with regions."""
    image = torch.from_numpy(scene(1, SHAPE)).permute(2, 0, 1)
    (sample,) = model.test_step(random_image(model, SHAPE) | dict(inputs=[image]))
    maps = [sample.get(name) for name in ("pred_panoptic_seg", "pred_sem_seg") if name in sample]
    return [m.get("sem_seg", m.get("data")) for m in maps], sample.get("pred_instances")


@pytest.mark.parametrize("path", [SHAPES_CONFIG, INSTANCE_CONFIG, SEMANTIC_CONFIG, *PER_PIXEL])
def test_prepared_models_predict_the_same(path):
    model = build(path)
    expected, (maps, instances) = logits(model), predict(model)
    prepare_for_inference(model)
    assert not norms(model.backbone)
    assert not hasattr(model, "decode_head") or not norms(model.decode_head)
    assert_close(logits(model), expected, 1e-4)
    new_maps, new_instances = predict(model)
    for one, other in zip(new_maps, maps, strict=True):
        assert len(other.unique()) > 1
        assert (one == other).float().mean() > 0.999
    assert len(maps) == {SHAPES_CONFIG: 2, INSTANCE_CONFIG: 0}.get(path, 1)
    assert (instances is None) == (path not in (SHAPES_CONFIG, INSTANCE_CONFIG))
    if instances is not None:
        assert_close(new_instances.scores, instances.scores, 1e-3)
        assert torch.equal(new_instances.labels, instances.labels)
        assert (new_instances.masks == instances.masks).float().mean() > 0.999


@pytest.mark.parametrize("path", [SHAPES_CONFIG, FCN_CONFIG])
def test_undo(path):
    model = build(path)
    expected, modules = logits(model), dict(model.named_modules())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    undo = prepare_for_inference(model)
    assert dict(model.named_modules()) != modules
    undo()
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.is_contiguous(), name
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trainable
    for one, other in zip(logits(model), expected, strict=True):
        assert torch.equal(one, other)


def test_models_that_cannot_be_fused_still_get_channels_last(monkeypatch):
    model = build(SHAPES_CONFIG)

    def forward(inputs, data_samples, mode):
        return data_samples[0].text

    monkeypatch.setattr(model, "forward", forward)
    before = len(norms(model))
    message = r"BatchNorm is not fused: expected MaskFormer to run on a random image.*text"
    with pytest.warns(UserWarning, match=message):
        prepare_for_inference(model)
    assert len(norms(model)) == before
    assert model.backbone.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="in evaluation mode"):
        prepare_for_inference(nn.Sequential(conv(), norm()))


@torch.no_grad()
def test_channels_last_is_refused_where_mmcv_would_misread_it():
    to_channels_last(backbone())  # has deformable convolutions of ours
    for layer, name in ((ModulatedDeformConv2dPack(3, 4, 3), "0"), (Regions(), "0.align")):
        with pytest.raises(ValueError, match=rf"read any memory as contiguous, got '{name}'"):
            to_channels_last(nn.Sequential(layer))
    model = randomize(Regions())
    image = torch.randn(1, 3, 16, 16)
    expected = model(image)
    # If this does not hold any longer, such layers need not be refused.
    wrong = model.to(memory_format=torch.channels_last)(image)
    assert not torch.allclose(wrong, expected, atol=0.01)
    model.to(memory_format=torch.contiguous_format)
    prepare_for_inference(model)
    assert not norms(model)
    assert_close(model(image), expected, 1e-5)


def test_test_step_under_autocast():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def test_step(self, data):
            """Its own."""
            y = self.conv(data)
            self.seen = y.dtype
            instances = InstanceData(scores=y[:, 0, 0, 0], labels=torch.tensor([1]))
            return [DetDataSample(pred_instances=instances, name="a")]

    model = Model()
    assert autocast_test_step(model, torch.float32) == model.test_step
    step = autocast_test_step(model, torch.bfloat16)
    assert step.__doc__ == "Its own."
    (sample,) = step(torch.randn(1, 3, 4, 4))
    assert model.seen == torch.bfloat16
    assert sample.pred_instances.scores.dtype == torch.float32
    assert sample.pred_instances.labels.dtype == torch.int64
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("path", [SHAPES_CONFIG, FCN_CONFIG])
@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_close(path, fast):
    model = build(path)
    expected = logits(model)
    if fast:
        prepare_for_inference(model)
    for one, other in zip(logits(model, torch.bfloat16), expected, strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert 0 < error < 0.05


def test_clustering_and_deformable_sampling_stay_in_float32():
    """They add no rounding to that of their inputs, and read channels-last weights."""
    model = backbone().eval()
    prepare_for_inference(model)
    layers = [m for m in model.modules() if isinstance(m, DeformableDownsampling)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in layers)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = model(torch.randn(1, 3, 64, 64))
        sampled = layers[0](torch.randn(1, layers[0].in_channels, 8, 8))
    assert all(assignment.dtype == torch.float32 for assignment in features.assignments)
    assert sampled.dtype == torch.float32


def test_prepares_on_a_gpu():
    """Tensors of the CPU do not meet those of the GPU."""
    with pretend_gpu() as gpu:
        model = gpu.copy(detector().eval())
        restore = prepare_for_inference(model)
        assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        restore()
        assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
