import copy
import threading

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from hcformer_mm.models import HCBackbone
from hcformer_mm.models.backbones import taps as tapping
from hcformer_mm.models.downsampling import DeformableDownsampling
from hcformer_mm.structures import ClusteredFeatures
from tests.models import backbone, resnet

SCOPES = ["mmdet", "mmseg", "mmpretrain"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels_and_shapes(scope, level):
    model = backbone(resnet(scope), hierarchical_level=level)
    features = model(torch.randn(2, 3, 64, 96))
    assert isinstance(features, ClusteredFeatures)
    assert [tuple(f.shape) for f in features] == [
        (2, 64, 16, 24),
        (2, 128, 8, 12),
        (2, 256, 4, 6),
        (2, 512, 2, 3),
    ]
    sizes = [(16, 24), (8, 12), (4, 6)][3 - level :]
    assert [tuple(a.shape) for a in features.assignments] == [(2, 9, *size) for size in sizes]
    assert len(features.scales) == level
    for assignment in features.assignments:
        torch.testing.assert_close(assignment.sum(1), torch.ones_like(assignment[:, 0]))


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth(depth):
    features = backbone(resnet(depth=depth)).eval()(torch.randn(1, 3, 32, 32))
    assert len(features.assignments) == 3


@pytest.mark.parametrize(
    "wrapped",
    [
        dict(type="mmdet.ResNetV1d", depth=50),
        dict(type="mmseg.ResNetV1c", depth=18),
        resnet(depth=50, style="caffe"),
    ],
    ids=["v1d", "v1c", "caffe"],
)
def test_variants_of_resnet(wrapped):
    features = backbone(wrapped).eval()(torch.randn(1, 3, 40, 40))
    assert [tuple(a.shape[-2:]) for a in features.assignments] == [(10, 10), (5, 5), (3, 3)]


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (70, 31)])
def test_odd_images(size):
    features = backbone().eval()(torch.randn(1, 3, *size))
    sides = [tuple(f.shape[-2:]) for f in features]
    assert [tuple(a.shape[-2:]) for a in features.assignments] == sides[:3]


@pytest.mark.parametrize("scope", SCOPES)
def test_original_downsampling_is_the_bare_backbone_bit_for_bit(scope):
    model = backbone(resnet(scope), downsampling="original").eval()
    bare = MODELS.build(resnet(scope))
    bare.load_state_dict(model.backbone.state_dict())
    bare.eval()
    image = torch.randn(1, 3, 65, 64)
    for ours, theirs in zip(model(image), bare(image), strict=True):
        assert torch.equal(ours, theirs)


def test_taps_are_the_stage_and_the_first_block_of_the_next():
    model = backbone(downsampling="original", hierarchical_level=2).eval()
    seen = {}
    resnet18 = model.backbone
    resnet18.layer2.register_forward_hook(lambda m, i, o: seen.update(fine=o))
    resnet18.layer3[0].register_forward_hook(lambda m, i, o: seen.update(coarse=o))
    features = model(torch.randn(1, 3, 64, 64))
    expected = model.clusterings[0](seen["fine"], seen["coarse"])
    assert torch.equal(features.assignments[0], expected)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_deformable_layers(level):
    model = backbone(resnet(depth=50), hierarchical_level=level)
    names = [n for n, m in model.named_modules() if isinstance(m, DeformableDownsampling)]
    stages = [2, 3, 4][3 - level :]
    assert names == [
        f"backbone.layer{stage}.0.{layer}"
        for stage in stages
        for layer in ("conv2", "downsample.0")
    ]


def test_pretrained_checkpoint_loads_into_the_deformable_layers(tmp_path):
    donor = MODELS.build(resnet())
    checkpoint = tmp_path / "resnet18.pth"
    torch.save(donor.state_dict(), checkpoint)
    model = backbone(resnet(init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint))))
    model.init_weights()
    state = model.backbone.state_dict()
    for name, weight in donor.state_dict().items():
        assert torch.equal(state[name], weight), name
    extra = set(state) - set(donor.state_dict())
    assert {name.rsplit(".", 1)[-1] for name in extra} == {"weight", "bias"}
    for name in extra:
        assert ".conv1.bias" in name or ".downsample.0.bias" in name or "conv_offset" in name
        assert (state[name] == 0).all()


def test_from_scratch_kernels_start_undeformed():
    model = backbone()
    model.init_weights()
    layers = [m for m in model.modules() if isinstance(m, DeformableDownsampling)]
    assert len(layers) == 6
    for layer in layers:
        assert (layer.conv_offset.weight == 0).all()
        assert (layer.conv_offset.bias == 0).all()
        # Uniform, as the host's deformable convolutions and torch's plain ones start.
        bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert (layer.bias == 0).all()


def test_frozen_stages_stay_frozen():
    model = backbone(resnet(frozen_stages=2))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.layer2.0.conv1.weight" in frozen
    assert "backbone.layer2.0.conv1.conv_offset.weight" in frozen
    assert not any(name.startswith("backbone.layer3") for name in frozen)


def test_undeformed_layer_is_half_the_convolution():
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False)
    layer = DeformableDownsampling(conv)
    x = torch.randn(2, 4, 7, 9)
    # Zero offsets, and a modulation of sigmoid(0) = 0.5.
    torch.testing.assert_close(layer(x), conv(x) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_layer_under_autocast(dtype):
    layer = DeformableDownsampling(nn.Conv2d(4, 6, 3, stride=2, padding=1))
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(1, 4, 8, 8)
    exact = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        half = layer(x)
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


def test_every_trainable_parameter_gets_a_finite_gradient():
    model = backbone()
    features = model(torch.randn(2, 3, 64, 64))
    loss = sum((f**2).mean() for f in features) + sum((a**2).mean() for a in features.assignments)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_copies_report_their_own_maps():
    model = backbone(downsampling="original").eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.mul_(0.5)
    image = torch.randn(1, 3, 64, 64)
    ours, theirs = model(image), twin(image)
    assert not torch.equal(ours.assignments[0], theirs.assignments[0])
    assert torch.equal(ours.assignments[0], model(image).assignments[0])


def test_threads_do_not_mix():
    model = backbone().eval()
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    with torch.no_grad():
        expected = [model(image).assignments[0] for image in images]
    results = [None] * len(images)

    def run(i):
        with torch.no_grad():
            for _ in range(5):
                results[i] = model(images[i]).assignments[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted)


def test_nothing_is_kept_after_forward():
    model = backbone().eval()
    model(torch.randn(1, 3, 32, 32))
    assert tapping._LOCAL.captured is None
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 32, 32))
    assert tapping._LOCAL.captured is None


def test_dry_run_leaves_no_trace():
    bare = MODELS.build(resnet())
    bare.train()
    before = copy.deepcopy(bare.state_dict())
    tapping.dry_run(bare)
    assert bare.training and bare.layer1.training
    for name, value in bare.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_custom_taps_equal_the_default_ones():
    image = torch.randn(1, 3, 64, 64)
    default = backbone(hierarchical_level=2).eval()(image)
    custom = backbone(taps=["layer2.0", "layer3.0", "layer4.0"], hierarchical_level=2).eval()(image)
    assert torch.equal(default.assignments[0], custom.assignments[0])


def test_unknown_backbone_lists_the_modules_that_halve():
    wrapped = dict(type="mmpretrain.MobileNetV2", out_indices=(1, 2, 4, 7))
    with pytest.raises(ValueError, match=r"expected taps for MobileNetV2.*'layer2\.0'"):
        backbone(wrapped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hierarchical_level=4), "between 0 and 3, .* got 4"),
        (dict(hierarchical_level=-1), "between 0 and 3, .* got -1"),
        (dict(downsampling="dcn"), "'deform' or 'original', got 'dcn'"),
        (dict(taps=["layer9.0"], hierarchical_level=1), "got 'layer9.0'"),
        (
            dict(taps=["layer1.0"], hierarchical_level=1, downsampling="original"),
            "tap 'layer1.0' to be run and to halve",
        ),
        (
            dict(taps=["layer1.0"], hierarchical_level=1),
            "a convolution of stride two in BasicBlock, found none",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)


def test_is_built_by_its_scoped_name():
    assert isinstance(backbone(), HCBackbone)
