"""Models that were prepared for inference give what they gave, and can be put back."""

import pytest
import torch
from mmcv.cnn import ConvModule, ConvWS2d
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.acceleration.inference import (
    check_dtype,
    fuse_conv_bn,
    speed_up,
    step_in,
    to_channels_last,
)
from hcformer_mm.apis.inference import build_model
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from hcformer_mm.utils.config import find_config
from hcformer_mm.utils.random_inputs import model_call
from tests.helpers.models import SEMANTIC_CONFIG, SHAPES_CONFIG, backbone, resnet
from tests.helpers.predictions import diversify, outspoken_config, scene
from tests.test_models.test_backbones.test_backbone_families import FAMILIES

INSTANCE_CONFIG = "configs/shapes/hcformer_r18_shapes-instance.py"
PER_PIXEL = ["hc-fcn32s", "hc-pspnet", "hc-deeplabv3", "fcn32s", "fpn", "pspnet", "deeplabv3"]
SHAPE = (192, 256)


def build(name):
    """The model of a config, with BatchNorms, offsets and queries of some character."""
    model = build_model(outspoken_config(find_config(name)))
    diversify(model)
    if hasattr(model, "panoptic_head"):
        model.panoptic_head.cls_embed.weight.data *= 2  # Several queries get a segment.
    return randomize(model)


def randomize(model):
    """Give every BatchNorm statistics and factors of its own, and let deformable layers deform."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0.0, 0.1)
        if isinstance(module, DeformableDownsampling):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return model.eval()


def norms(model):
    """How many BatchNorms there are."""
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def flat(outputs):
    """The tensors of nested lists."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flat(output)]


def assert_close(outputs, expected, tolerance):
    """Compare with the largest value of each tensor as the measure."""
    outputs, expected = flat(outputs), flat(expected)
    assert len(outputs) == len(expected) > 0
    for one, other in zip(outputs, expected, strict=True):
        assert other.std() > 0
        atol = tolerance * other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


# Backbones of every family with BatchNorm.


def r50(kind="ResNet", **options):
    config = dict(resnet(depth=50, base_channels=8, **options), type=f"mmseg.{kind}")
    return lambda: backbone(config)


BACKBONES = {
    "r18": lambda: backbone(resnet(frozen_stages=2)),
    "r50": r50(),
    "r50-v1c": r50("ResNetV1c", contract_dilation=True, dilations=(1, 1, 1, 1)),
    "r50-v1d": lambda: backbone(
        dict(resnet(depth=50, base_channels=8), type="mmseg.ResNetV1d"), downsampling="original"
    ),
    "r50-caffe": r50(style="caffe"),
    "r50-mmpretrain": lambda: backbone(
        dict(type="mmpretrain.ResNet", depth=50, out_indices=(0, 1, 2, 3))
    ),
    **{
        name: FAMILIES[name].build
        for name in ("resnet", "mobilenet-v2", "efficientnet", "timm-efficientnet")
    },
}


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_fusing_keeps_what_backbones_return(name):
    model = randomize(BACKBONES[name]()).double()
    image = torch.randn(2, 3, 80, 64, dtype=torch.float64)
    expected = model(image)
    before = norms(model)
    assert before > 0
    assert fuse_conv_bn(model) is model
    features = model(image)
    assert_close(tuple(features), tuple(expected), 1e-9)
    assert_close(features.assignments, expected.assignments, 1e-9)
    if name.startswith("timm"):
        # A BatchNorm of timm may have an activation inside.
        rest = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        assert 0 < len(rest) < before
        assert not any(isinstance(module.act, nn.Identity) for module in rest)
    else:
        assert norms(model) == 0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BACKBONES])
def test_families_without_batch_norm_are_left_alone(name):
    model = FAMILIES[name].build().eval()
    assert norms(model) == 0
    modules = dict(model.named_modules())
    assert dict(fuse_conv_bn(model).named_modules()) == modules


def test_frozen_layers_stay_frozen():
    model = backbone(resnet(frozen_stages=2)).eval()
    fuse_conv_bn(model)
    for name, module in model.backbone.named_modules():
        if isinstance(module, nn.Conv2d | DeformableDownsampling):
            frozen = name.startswith(("conv1", "layer1", "layer2"))
            assert module.weight.requires_grad is not frozen, name


# Where the order of names misleads.


class Net(nn.Module):
    """Layers, in the order of their names, and how they are run."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class RectifiedNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


def conv(channels=3, **options):
    return nn.Conv2d(channels, 3, 3, padding=1, **options)


def norm(**options):
    return nn.BatchNorm2d(3, **options)


MISLEADING = {
    "activation-between": lambda: nn.Sequential(conv(), nn.ReLU(), norm()),
    "norm-first": lambda: Net(lambda m, x: m.conv(m.norm(x)), conv=conv(), norm=norm()),
    "norm-first-module": lambda: ConvModule(
        3, 3, 3, norm_cfg=dict(type="BN"), order=("norm", "conv", "act")
    ),
    "activation-first-module": lambda: ConvModule(
        3, 3, 3, norm_cfg=dict(type="BN"), order=("conv", "act", "norm"), inplace=False
    ),
    "standardized-weights": lambda: nn.Sequential(ConvWS2d(3, 3, 3), norm()),
    "norm-with-activation": lambda: nn.Sequential(conv(), RectifiedNorm(3)),
    "two-norms-of-a-conv": lambda: Net(
        lambda m, x: m.a(y := m.conv(x)) - m.b(2 * y) + m.c(y),
        conv=conv(),
        a=norm(),
        b=norm(),
        c=norm(),
    ),
    "conv-called-twice": lambda: Net(
        lambda m, x: m.norm(m.conv(m.conv(x))), conv=conv(), norm=norm()
    ),
    "norm-of-two-convs": lambda: Net(
        lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x)), a=conv(), b=conv(), norm=norm()
    ),
    "batch-statistics": lambda: nn.Sequential(conv(), norm(track_running_stats=False)),
    "linear": lambda: nn.Sequential(
        conv(stride=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3), nn.BatchNorm1d(3)
    ),
}


@pytest.mark.parametrize("name", MISLEADING)
@torch.no_grad()
def test_what_cannot_be_fused_is_left_alone(name):
    model = MISLEADING[name]()
    if name != "batch-statistics":
        randomize(model)
    model.eval()
    modules = dict(model.named_modules())
    image = torch.randn(2, 3, 16, 16)
    expected = model(image)
    assert dict(fuse_conv_bn(model).named_modules()) == modules
    assert torch.equal(model(image), expected)


FOLDABLE = {
    "order-of-names": lambda: Net(
        lambda m, x: m.conv2(m.norm1(m.conv1(x))), norm1=norm(), conv2=conv(), conv1=conv()
    ),
    "inplace": lambda: nn.Sequential(conv(), norm(), nn.ReLU(inplace=True), conv(), norm()),
    "module": lambda: ConvModule(3, 3, 3, norm_cfg=dict(type="SyncBN"), padding_mode="reflect"),
    "without-factors": lambda: nn.Sequential(conv(), norm(affine=False)),
    "both-twice": lambda: Net(
        lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), conv=conv(), norm=norm()
    ),
    "dcn": lambda: nn.Sequential(ModulatedDeformConv2dPack(3, 3, 3), norm()),
}


@pytest.mark.parametrize("name", FOLDABLE)
@torch.no_grad()
def test_what_can_be_fused(name):
    model = randomize(FOLDABLE[name]())
    image = torch.randn(2, 3, 16, 16)
    expected = model(image)
    fuse_conv_bn(model)
    assert norms(model) == 0
    assert_close(model(image), expected, 1e-5)


READERS = {
    "before-another-layer": lambda m, x: m.last(m.norm(y := m.conv(x)) * y.sigmoid()),
    "last": lambda m, x: (m.last(x), m.norm(y := m.conv(x)), y.sigmoid()),
    "nobody-but-the-caller": lambda m, x: (m.last(x), m.norm(y := m.conv(x)), y),
    "its-values": lambda m, x: m.last(m.norm(y := m.conv(x))) * float(y.detach().numpy().mean()),
    "dropout": lambda m, x: m.last(m.norm(F.dropout2d(m.conv(x), training=m.training))),
}


def read_by(name):
    return Net(READERS[name], conv=conv(), norm=norm(), last=conv())


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_a_convolution_that_something_else_reads(name):
    model = randomize(read_by(name))
    modules = dict(model.named_modules())
    assert dict(fuse_conv_bn(model).named_modules()) == modules


@torch.no_grad()
def test_results_that_are_not_the_same():
    """Nothing is left behind."""
    model = Net(
        lambda m, x: m.last(m.norm(m.conv(x)) * torch.rand(1)),
        conv=conv(),
        norm=norm(),
        last=conv(),
    )
    randomize(model)
    modules = dict(model.named_modules())
    with pytest.raises(RuntimeError, match=r"Net with the same results after fusing .* random"):
        fuse_conv_bn(model)
    assert dict(model.named_modules()) == modules


def test_a_second_run_that_fails():
    runs = []

    def run(module, x):
        runs.append(len(runs))
        assert len(runs) < 2, "once is enough"
        return module.norm(module.conv(x))

    model = randomize(Net(run, conv=conv(), norm=norm()))
    modules = dict(model.named_modules())
    with pytest.raises(RuntimeError, match="once is enough"):
        fuse_conv_bn(model)
    assert dict(model.named_modules()) == modules


def test_a_layer_in_two_places():
    shared = conv()
    model = randomize(Net(lambda m, x: m.norm(m.conv(x)), conv=shared, again=shared, norm=norm()))
    fuse_conv_bn(model)
    assert model.conv is model.again is not shared


@pytest.mark.parametrize("watched", ["0", "1"])
@pytest.mark.parametrize("how", ["forward hook", "backward hook", "another forward"])
def test_watched_layers_stay(watched, how):
    """Taps of a backbone, for example, would see another map."""
    model = randomize(nn.Sequential(conv(), norm()))
    layer = model.get_submodule(watched)
    if how == "forward hook":
        layer.register_forward_hook(lambda *call: None)
    elif how == "backward hook":
        layer.register_full_backward_hook(lambda *call: None)
    else:
        layer.forward = layer.forward
    modules = list(model)
    assert list(fuse_conv_bn(model)) == modules


def test_what_is_run_leaves_no_hooks():
    model = randomize(nn.Sequential(conv(), nn.ReLU(), norm()))
    fuse_conv_bn(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_training_is_refused():
    with pytest.raises(ValueError, match=r"Sequential in evaluation mode .* call its eval\(\)"):
        fuse_conv_bn(nn.Sequential(conv(), norm()))
    with pytest.raises(ValueError, match="in evaluation mode"):
        speed_up(nn.Sequential(conv(), norm()))
    model = randomize(nn.Sequential(conv(), norm()))
    model[1].train()
    fuse_conv_bn(model)
    assert norms(model) == 1


def test_sizes_are_tried():
    def run(module, x):
        assert x.shape[-2:] == (224, 224)
        return module.norm(module.conv(x))

    model = randomize(Net(run, conv=conv(), norm=norm()))
    fuse_conv_bn(model)
    assert norms(model) == 0


# Layers of mmcv that read any memory as contiguous.


class Regions(nn.Module):
    """A convolution, and RoIAlign on what it returns."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.align = RoIAlign(4)

    def forward(self, x):
        return self.align(self.norm(self.conv(x)), x.new_tensor([[0, 1, 1, 9, 9]]))


@torch.no_grad()
def test_channels_last_is_refused_where_mmcv_would_compute_nonsense():
    to_channels_last(backbone())  # has deformable convolutions of ours
    for layer, name in ((ModulatedDeformConv2dPack(3, 4, 3), "0"), (Regions(), "0.align")):
        with pytest.raises(ValueError, match=rf"read any memory as contiguous, got '{name}'"):
            to_channels_last(nn.Sequential(layer))
    model = randomize(Regions())
    image = torch.randn(1, 3, 16, 16)
    expected = model(image)
    # If this holds no longer, such layers need not be refused.
    wrong = model.to(memory_format=torch.channels_last)(image)
    assert not torch.allclose(wrong, expected, atol=0.01)
    model.to(memory_format=torch.contiguous_format)
    speed_up(model)
    assert norms(model) == 0
    assert_close(model(image), expected, 1e-5)


def test_channels_last_weights_of_deformable_layers():
    model = backbone().eval()
    speed_up(model)
    layers = [m for m in model.modules() if isinstance(m, DeformableDownsampling)]
    assert layers
    for layer in layers:
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)


# Whole models.


@torch.no_grad()
def predict(model):
    """What a model predicts of an image with regions."""
    image = torch.from_numpy(scene(1, SHAPE)).permute(2, 0, 1)
    sample = (SegDataSample if hasattr(model, "decode_head") else DetDataSample)(
        metainfo=dict(img_shape=SHAPE, ori_shape=SHAPE, pad_shape=SHAPE, scale_factor=(1, 1))
    )
    (sample,) = model.test_step(dict(inputs=[image], data_samples=[sample]))
    return sample


@pytest.mark.parametrize("path", [SHAPES_CONFIG, INSTANCE_CONFIG, SEMANTIC_CONFIG, *PER_PIXEL])
def test_fast_models_predict_the_same(path):
    if path in PER_PIXEL:
        stride = "-d8" if path in ("pspnet", "deeplabv3") else ""
        path = f"{path}_r18{stride}_shapes-semantic"
    model = build(path)
    logits = model_call(model, SHAPE, mode="forward")
    expected, expected_sample = logits(), predict(model)
    speed_up(model)
    assert norms(model.backbone) == 0
    assert not hasattr(model, "decode_head") or norms(model.decode_head) == 0
    assert_close(logits(), expected, 1e-4)
    sample = predict(model)
    compared = 0
    for field in ("pred_panoptic_seg", "pred_sem_seg"):
        for key in ("sem_seg", "data"):
            if field in expected_sample and key in expected_sample.get(field):
                one, other = (s.get(field).get(key) for s in (sample, expected_sample))
                assert len(other.unique()) > 1
                assert (one == other).float().mean() > 0.999
                compared += 1
    if "pred_instances" in expected_sample:
        one, other = (s.pred_instances for s in (sample, expected_sample))
        assert_close(one.scores, other.scores, 1e-3)
        assert torch.equal(one.labels, other.labels)
        assert (one.masks == other.masks).float().mean() > 0.999
        compared += 1
    assert compared == {SHAPES_CONFIG: 3}.get(path, 1)


@pytest.mark.parametrize("path", [SHAPES_CONFIG, "hc-fcn32s_r18_shapes-semantic"])
def test_undo(path):
    model = build(path)
    logits = model_call(model, SHAPE, mode="forward")
    expected, modules = flat(logits()), dict(model.named_modules())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    undo = speed_up(model)
    assert dict(model.named_modules()) != modules
    undo()
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.is_contiguous(), name
    assert [n for n, p in model.named_parameters() if p.requires_grad] == trainable
    for one, other in zip(flat(logits()), expected, strict=True):
        assert torch.equal(one, other)


def test_model_that_needs_more_than_a_image(monkeypatch):
    model = build(SHAPES_CONFIG)

    def forward(inputs, data_samples, mode):
        return data_samples[0].text

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(RuntimeError, match=r"expected MaskFormer to run on a random image.*text"):
        fuse_conv_bn(model)
    before = norms(model)
    with pytest.warns(UserWarning, match="BatchNorm is not fused: expected MaskFormer to run"):
        speed_up(model)
    assert norms(model) == before
    assert model.backbone.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


# Precision.


def test_dtypes():
    assert check_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ValueError, match="one of float32, bfloat16, float16, got 'int8'"):
        check_dtype("int8")


def test_a_step_in_float32_is_the_step():
    model = build(SHAPES_CONFIG)
    assert step_in(torch.float32, model) == model.test_step


def test_a_step_in_another_precision():
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
    step = step_in(torch.bfloat16, model)
    assert step.__doc__ == "Its own."
    (sample,) = step(torch.randn(1, 3, 4, 4))
    assert model.seen == torch.bfloat16
    assert sample.pred_instances.scores.dtype == torch.float32
    assert sample.pred_instances.labels.dtype == torch.int64
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("path", [SHAPES_CONFIG, "hc-fcn32s_r18_shapes-semantic"])
@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_close(path, fast):
    model = build(path)
    expected = model_call(model, SHAPE, mode="forward")()
    if fast:
        speed_up(model)
    outputs = model_call(model, SHAPE, mode="forward", dtype=torch.bfloat16)()
    for one, other in zip(flat(outputs), flat(expected), strict=True):
        error = (one.float() - other).norm() / other.norm()
        assert 0 < error < 0.05


def test_clustering_and_deformable_sampling_stay_in_float32():
    """Their results do not carry the rounding of bfloat16 beyond that of their inputs."""
    model = backbone().eval()
    speed_up(model)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = model(torch.randn(1, 3, 64, 64))
        layer = next(m for m in model.modules() if isinstance(m, DeformableDownsampling))
        sampled = layer(torch.randn(1, layer.in_channels, 8, 8))
    assert all(assignment.dtype == torch.float32 for assignment in features.assignments)
    assert sampled.dtype == torch.float32
