"""Fused models compute what they computed, and layers that cannot be fused are left alone."""

from copy import deepcopy

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn

from hcformer_mm.acceleration.conv_bn_fusion import fuse_conv_bn, fuse_frozen_bn, has_fused_bn
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from tests.helpers.conv_bn import (
    FUSIBLE,
    UNFUSIBLE,
    Frozen,
    Net,
    assert_close,
    assert_same_gradients,
    conv,
    gradients,
    maps,
    net,
    norm,
    norms,
    overridden,
    randomize,
)
from tests.helpers.devices import assert_same, at_least, on_each_device
from tests.helpers.models import backbone, resnet
from tests.test_models.test_backbones.test_backbone_families import FAMILIES


def mmseg_resnet(kind="ResNet", **options):
    config = dict(resnet(depth=50, base_channels=8, **options), type=f"mmseg.{kind}")
    downsampling = "original" if kind == "ResNetV1d" else "deform"
    return lambda: backbone(config, downsampling=downsampling)


WITH_BN = {
    "r18": lambda: backbone(resnet(frozen_stages=2)),
    "r50": mmseg_resnet(),
    "r50-v1c": mmseg_resnet("ResNetV1c", contract_dilation=True, dilations=(1, 1, 1, 1)),
    "r50-v1d": mmseg_resnet("ResNetV1d"),
    "r50-caffe": mmseg_resnet(style="caffe"),
    "r50-mmpretrain": lambda: backbone(
        dict(type="mmpretrain.ResNet", depth=50, out_indices=(0, 1, 2, 3))
    ),
    **{
        name: FAMILIES[name].build
        for name in ("resnet", "mobilenet-v2", "efficientnet", "timm-efficientnet")
    },
}


@on_each_device
@pytest.mark.parametrize("name", WITH_BN)
@torch.no_grad()
def test_fused_backbones_return_the_same(name):
    model = randomize(WITH_BN[name]()).double()
    image = torch.randn(2, 3, 80, 64, dtype=torch.float64)
    expected = model(image)
    before = norms(model)
    assert before
    fuse_conv_bn(model)
    features = model(image)
    assert_close(maps(features), maps(expected), 1e-9)
    rest = norms(model)
    if name.startswith("timm"):  # its BatchNorms may have an activation inside
        assert 0 < len(rest) < len(before)
        assert not any(isinstance(module.act, nn.Identity) for module in rest)
    else:
        assert not rest


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in WITH_BN])
def test_families_without_batch_norm_are_left_alone(name):
    model = FAMILIES[name].build().eval()
    assert not norms(model)
    modules = dict(model.named_modules())
    fuse_conv_bn(model)
    assert dict(model.named_modules()) == modules


def test_frozen_layers_stay_frozen():
    model = backbone(resnet(frozen_stages=2)).eval()
    fuse_conv_bn(model)
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d | DeformableDownsampling):
            frozen = name.startswith(("conv1", "layer1", "layer2"))
            assert module.weight.requires_grad is not frozen, name


# Frozen BatchNorm is fused into fewer layers.
UNFUSIBLE_IN_TRAINING = {
    "dcn": FUSIBLE["dcn"],
    "dropout-module": lambda: nn.Sequential(conv(), nn.Dropout2d(), norm()),
    "padding-of-its-own": lambda: nn.Sequential(Conv2dAdaptivePadding(3, 3, 2, stride=2), norm()),
}


@pytest.mark.parametrize("name", [*UNFUSIBLE, *UNFUSIBLE_IN_TRAINING])
def test_unfusible_layers_are_left_alone(name):
    make = {**UNFUSIBLE, **UNFUSIBLE_IN_TRAINING}[name]
    if name != "batch-statistics":  # which are never frozen
        model = Frozen(make())
        fuse_frozen_bn(model)
        assert not overridden(model)
    if name in UNFUSIBLE:
        model = randomize(make())
        modules = dict(model.named_modules())
        fuse_conv_bn(model)
        assert dict(model.named_modules()) == modules


@on_each_device
@pytest.mark.parametrize("name", FUSIBLE)
@torch.no_grad()
def test_fusible_layers_are_fused(name):
    model = randomize(FUSIBLE[name]())
    image = torch.randn(2, 3, 16, 16)
    expected = model(image)
    unfuse = fuse_conv_bn(model)
    assert not norms(model)
    assert_close(model(image), expected, at_least(1e-5))
    unfuse()
    assert_same(model(image), expected)


@on_each_device
@pytest.mark.parametrize("name", sorted(FUSIBLE.keys() - UNFUSIBLE_IN_TRAINING.keys()))
def test_fused_layers_have_the_same_gradients(name):
    model = Frozen(FUSIBLE[name]())
    plain = deepcopy(model).double()
    fuse_frozen_bn(model)
    assert any(map(has_fused_bn, model.modules()))
    image = torch.randn(2, 3, 16, 16).double()
    assert_same_gradients(model.double(), gradients(plain, image), image)


def random_factor(m, x):
    return m.last(m.norm(m.conv(x)) * torch.rand(1))


def fails_in_the_second_run(m, x):
    m.runs = getattr(m, "runs", 0) + 1
    assert m.runs < 2, "once is enough"
    return m.norm(m.conv(x))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (random_factor, r"Net to give the same results after fusing .* random"),
        (fails_in_the_second_run, "once is enough"),
    ],
)
def test_models_that_cannot_be_verified_are_left_as_they_were(run, message):
    model = randomize(net(run))
    modules = dict(model.named_modules())
    with pytest.raises(RuntimeError, match=message):
        fuse_conv_bn(model)
    assert dict(model.named_modules()) == modules
    model = Frozen(net(run))
    with pytest.raises(RuntimeError, match=message.replace("Net", "Frozen")):
        fuse_frozen_bn(model)
    assert not overridden(model) and model.training


def test_a_layer_in_two_places():
    shared = conv()
    model = randomize(Net(lambda m, x: m.norm(m.conv(x)), conv=shared, again=shared, norm=norm()))
    fuse_conv_bn(model)
    assert model.conv is model.again is not shared


@pytest.mark.parametrize("observed", ["0", "1"])
@pytest.mark.parametrize("how", ["forward hook", "backward hook", "another forward"])
def test_observed_layers_stay(observed, how):
    """Taps of a backbone, for example, would see another map."""
    model = randomize(nn.Sequential(conv(), norm()))
    layer = model.get_submodule(observed)
    if how == "forward hook":
        layer.register_forward_hook(lambda *call: None)
    elif how == "backward hook":
        layer.register_full_backward_hook(lambda *call: None)
    else:
        layer.forward = layer.forward
    modules = list(model)
    fuse_conv_bn(model)
    assert list(model) == modules


def test_tracing_leaves_no_hooks():
    model = randomize(nn.Sequential(conv(), nn.ReLU(), norm()))
    fuse_conv_bn(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"Sequential in evaluation mode .* call its eval\(\)"):
        fuse_conv_bn(nn.Sequential(conv(), norm()))
    model = randomize(nn.Sequential(conv(), norm()))
    model[1].train()
    fuse_conv_bn(model)
    assert norms(model)


def test_several_sizes_are_tried():
    def run(module, x):
        assert x.shape[-2:] == (224, 224)
        return module.norm(module.conv(x))

    model = randomize(net(run))
    fuse_conv_bn(model)
    assert not norms(model)


@pytest.mark.parametrize("frozen", ["statistics", "factors"])
def test_norms_that_learn_are_left_alone(frozen):
    model = backbone(
        dict(resnet(), norm_eval=frozen == "statistics")
        | dict(norm_cfg=dict(type="BN", requires_grad=frozen != "factors"))
    )
    model.train()
    fuse_frozen_bn(model)
    assert not overridden(model)
    assert model.training


def test_layers_may_keep_tensors_of_the_traced_run():
    """A table that a layer makes at its first call can be used in training."""

    def run(module, x):
        if not hasattr(module, "table"):
            module.table = torch.ones_like(x)
        return module.norm(module.conv(x[..., :8, :8] * module.table[..., :8, :8]))

    model = Frozen(net(run))
    fuse_frozen_bn(model)
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert model.model.conv.weight.grad is not None
