import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmcv.cnn.bricks import Conv2dAdaptivePadding, ConvWS2d
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import nn
from torch.nn import functional as F

from hcformer_mm.models import HCBackbone
from hcformer_mm.models.backbones import taps as tapping
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from hcformer_mm.ops import decode_hierarchy
from hcformer_mm.ops.neighborhood import coarse_size
from hcformer_mm.structures.clustered_features import ClusteredFeatures
from tests.helpers import reference
from tests.helpers.devices import assert_same, at_least, on_each_device
from tests.helpers.models import backbone, resnet

SCOPES = ["mmdet", "mmseg", "mmpretrain"]


@on_each_device
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("level", range(6))
def test_levels_and_shapes(scope, level):
    model = backbone(resnet(scope), hierarchical_level=level)
    features = model(torch.randn(2, 3, 64, 96))
    assert isinstance(model, HCBackbone) and isinstance(features, ClusteredFeatures)
    assert [tuple(f.shape) for f in features] == [
        (2, 64, 16, 24),
        (2, 128, 8, 12),
        (2, 256, 4, 6),
        (2, 512, 2, 3),
    ]
    sizes = [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)][5 - level :]
    assert [tuple(a.shape) for a in features.assignments] == [(2, 9, *size) for size in sizes]
    assert len(features.scales) == level
    for assignment in features.assignments:
        torch.testing.assert_close(assignment.sum(1), torch.ones_like(assignment[:, 0]))


@pytest.mark.parametrize(
    "wrapped",
    [
        *(resnet(depth=depth) for depth in (34, 50, 101, 152)),
        dict(type="mmdet.ResNetV1d", depth=50),
        dict(type="mmseg.ResNetV1c", depth=18),
        resnet(depth=50, style="caffe"),
    ],
    ids=["34", "50", "101", "152", "v1d", "v1c", "caffe"],
)
@pytest.mark.parametrize("level", [3, 5])
def test_variants_of_resnet(wrapped, level):
    features = backbone(wrapped, hierarchical_level=level).eval()(torch.randn(1, 3, 40, 40))
    sizes = [(40, 40), (20, 20), (10, 10), (5, 5), (3, 3)]
    assert [tuple(a.shape[-2:]) for a in features.assignments] == sizes[5 - level :]


@on_each_device
@pytest.mark.parametrize("size", [(33, 47), (1, 1), (70, 31)])
def test_odd_images(size):
    features = backbone(hierarchical_level=5).eval()(torch.randn(1, 3, *size))
    sides = [tuple(f.shape[-2:]) for f in features]
    assert [tuple(a.shape[-2:]) for a in features.assignments] == [
        size,
        coarse_size(*size),
        *sides[:3],
    ]


@on_each_device
def test_taps_are_the_stage_and_the_first_block_of_the_next():
    model = backbone(downsampling="original", hierarchical_level=2).eval()
    seen = {}
    resnet18 = model.backbone
    resnet18.layer2.register_forward_hook(lambda m, i, o: seen.update(fine=o))
    resnet18.layer3[0].register_forward_hook(lambda m, i, o: seen.update(coarse=o))
    features = model(torch.randn(1, 3, 64, 64))
    expected = model.clusterings[0](seen["fine"], seen["coarse"])
    assert_same(features.assignments[0], expected)


@on_each_device
@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("size", [(13, 6), (7, 21), (1, 1)])
def test_clusters_of_the_stem_equal_the_dense_oracle_with_gradients(level, size):
    model = backbone(hierarchical_level=level).double().eval()
    image = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    seen = {}
    model.backbone.maxpool.register_forward_hook(
        lambda module, args, output: seen.update(pair=(*args, output))
    )
    output = model(image)
    masks = torch.randn(2, 3, *output[-1].shape[-2:], dtype=torch.float64)
    output = decode_hierarchy(masks, output.assignments)

    features = model(image)  # again, as each graph is differentiated once
    pairs = [seen["pair"]]
    if level == 5:
        conv = model.image_map[0]
        patches = F.unfold(image, 3, padding=1)  # (B, 27, N)
        pixels = conv.weight.flatten(1) @ patches + conv.bias[:, None]
        pairs.insert(0, (pixels.clamp(min=0).unflatten(2, size), pairs[0][0]))
    matrices = []
    for (fine, coarse), module in zip(pairs, model.clusterings, strict=False):
        sides = (
            (fine, module.fine_norm, module.fine_proj),
            (coarse, module.coarse_norm, module.coarse_proj),
        )
        normed = [
            F.normalize(projection(reference.layer_norm(x.movedim(1, -1), norm).movedim(-1, 1)))
            for x, norm, projection in sides
        ]
        matrices.append(reference.assignment_matrix(*normed, module.scale))
    expected = decode_hierarchy(masks, features.assignments[-3:])
    for (fine, _), matrix in reversed(list(zip(pairs, matrices, strict=True))):
        expected = reference.decode(expected, matrix, *fine.shape[-2:])
    inputs = [image, *model.clusterings[: level - 3].parameters()]
    inputs += [model.backbone.conv1.weight, *(model.image_map.parameters() if level == 5 else ())]
    reference.assert_same_with_gradients(output, expected, inputs, 1e-10, 1e-7, 1e-10)


@pytest.mark.parametrize("level", [4, 5])
def test_backbone_and_coarse_levels_stay_as_without_the_stem(level):
    """The stem's clusters change neither names nor outputs of the rest, nor the wrapped network."""
    image = torch.randn(1, 3, 45, 62)
    paper, model = backbone().eval(), backbone(hierarchical_level=level).eval()
    state = paper.state_dict()
    renamed = {
        name.replace(f"clusterings.{i}.", f"clusterings.{i + level - 3}.", 1): value
        for name, value in state.items()
        for i in [int(name.split(".")[1]) if name.startswith("clusterings.") else 0]
    }
    missing, unexpected = model.load_state_dict(renamed, strict=False)
    assert not unexpected and all(
        name.startswith(("clusterings.", "image_map.")) for name in missing
    )
    ours, theirs = model(image), paper(image)
    for a, b in zip((*ours, *ours.assignments[-3:]), (*theirs, *theirs.assignments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("wrapped", "most"),
    [
        (dict(type="mmdet.RegNet", arch="regnetx_400mf"), 5),
        (dict(type="mmpretrain.MobileNetV2", widen_factor=0.25, out_indices=(1, 2, 4, 7)), 5),
        (dict(type="mmdet.SwinTransformer", embed_dims=16, depths=[1] * 4, num_heads=[1] * 4), 3),
    ],
    ids=["regnet", "mobilenet", "swin"],
)
def test_stems_of_other_families(wrapped, most):
    """A patch embedding quarters the image at once, so its stem has no map of stride 2."""
    model = backbone(ConfigDict(wrapped), hierarchical_level=most, downsampling="original").eval()
    assert len(model(torch.randn(1, 3, 64, 64)).assignments) == most
    with pytest.raises(ValueError, match=f"between 0 and {most}, .* got {most + 1}"):
        backbone(ConfigDict(wrapped), hierarchical_level=most + 1, downsampling="original")


@pytest.mark.parametrize("level", [0, 1, 3, 5])
def test_deformable_layers(level):
    model = backbone(resnet(depth=50), hierarchical_level=level)
    names = [n for n, m in model.named_modules() if isinstance(m, DeformableDownsampling)]
    stages = [2, 3, 4][max(0, 3 - level) :]  # the stem stays
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
        # Uniform, as mmcv's deformable convolutions and torch's plain ones start.
        bound = (layer.in_channels * layer.kernel_size[0] ** 2) ** -0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert (layer.bias == 0).all()


def test_trained_offsets_stay_when_initialized_again():
    model = backbone()
    model.init_weights()
    offsets = next(p for name, p in model.named_parameters() if name.endswith("conv_offset.weight"))
    nn.init.ones_(offsets)
    model.init_weights()
    assert (offsets == 1).all()


@pytest.mark.parametrize("as_list", [False, True])
def test_checkpoint_of_a_clustering_backbone_keeps_its_offsets(tmp_path, as_list):
    donor = backbone()
    for module in donor.modules():
        if isinstance(module, DeformableDownsampling):
            nn.init.normal_(module.conv_offset.weight)
    checkpoint = tmp_path / "backbone.pth"
    torch.save(donor.state_dict(), checkpoint)
    init_cfg = dict(type="Pretrained", checkpoint=str(checkpoint))
    model = backbone(init_cfg=[init_cfg] if as_list else init_cfg)
    model.init_weights()
    state = model.state_dict()
    for name, weight in donor.state_dict().items():
        assert torch.equal(state[name], weight), name


def test_frozen_stages_stay_frozen():
    model = backbone(resnet(frozen_stages=2))
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.layer2.0.conv1.weight" in frozen
    assert "backbone.layer2.0.conv1.conv_offset.weight" in frozen
    assert not any(name.startswith("backbone.layer3") for name in frozen)


@on_each_device
@pytest.mark.parametrize(
    ("kernel", "size", "expected"),
    [(3, (7, 9), (4, 5)), (2, (8, 6), (4, 3)), (2, (7, 9), (3, 4))],
    ids=["overlap", "even", "odd"],
)
def test_undeformed_layer_is_half_the_convolution(kernel, size, expected):
    conv = nn.Conv2d(4, 6, kernel, stride=2, padding=kernel // 3, bias=False)
    x = torch.randn(2, 4, *size)
    y = DeformableDownsampling(conv).to(x.device)(x)
    assert tuple(y.shape[-2:]) == expected
    # Zero offsets, and a modulation of sigmoid(0) = 0.5.
    torch.testing.assert_close(y, conv(x) / 2, rtol=at_least(1.3e-6), atol=at_least(1e-5))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(4, 4, (3, 1), stride=2, padding=(1, 0)),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, stride=2, padding="valid"),
        Conv2dAdaptivePadding(4, 4, 3, stride=2),
        ConvWS2d(4, 4, 3, stride=2, padding=1),
    ],
    ids=["groups", "dilation", "oblong", "reflect", "named-padding", "pads", "standardizes"],
)
def test_convolutions_that_cannot_be_deformed(conv):
    with pytest.raises(ValueError, match=r"plain square convolution .* downsampling='original'"):
        DeformableDownsampling(conv)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_deformable_layer_under_autocast(dtype):
    layer = DeformableDownsampling(nn.Conv2d(4, 6, 3, stride=2, padding=1))
    nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = torch.randn(1, 4, 8, 8)
    exact = layer(x)
    with torch.autocast("cpu", dtype=dtype):
        half = layer(x)
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


def gradients(model, image):
    features = model(image)
    (sum((f**2).mean() for f in features) + (features.assignments[1] ** 2).sum()).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
@pytest.mark.parametrize("part", ["backbone.layer3.0", "backbone.layer3.1"])
def test_blocks_under_activation_checkpointing(part):
    plain, model = backbone(resnet(), downsampling="original"), backbone(downsampling="original")
    turn_on_activation_checkpointing(model, part)
    image = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(gradients(model, image), gradients(plain, image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint", "ignore:None of the inputs")
def test_a_tap_inside_activation_checkpointing_is_refused():
    """There, the maps of a tap carry no gradient."""
    model = backbone()
    turn_on_activation_checkpointing(model, "backbone.layer3")
    with pytest.raises(RuntimeError, match=r"tap 'layer3\.0' .* with gradients"):
        model(torch.randn(1, 3, 64, 64))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))


def test_frozen_backbone_needs_no_gradient():
    model = backbone()
    model.backbone.requires_grad_(False)
    (model(torch.randn(1, 3, 64, 64)).assignments[1] ** 2).sum().backward()
    assert model.clusterings[1].fine_proj.weight.grad.any()


@on_each_device
def test_copies_report_their_own_maps():
    model = backbone(downsampling="original").eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.backbone.parameters():
            parameter.mul_(0.5)
    image = torch.randn(1, 3, 64, 64)
    ours, theirs = model(image), twin(image)
    assert not torch.equal(ours.assignments[0], theirs.assignments[0])
    assert_same(ours.assignments[0], model(image).assignments[0])


def test_threads_do_not_mix():
    model = backbone().eval()
    images = [torch.randn(1, 3, 64, 64) for _ in range(4)]
    with torch.no_grad():
        expected = [model(image).assignments[0] for image in images]

    def run(image):
        with torch.no_grad():
            return [model(image).assignments[0] for _ in range(5)]

    with ThreadPoolExecutor(len(images)) as pool:
        runs = list(pool.map(run, images))
    for results, wanted in zip(runs, expected, strict=True):
        for result in results:
            torch.testing.assert_close(result, wanted)


def test_nothing_is_kept_after_forward():
    model = backbone().eval()
    model(torch.randn(1, 3, 32, 32))
    assert tapping._LOCAL.captured is None
    with pytest.raises(RuntimeError):
        model(torch.randn(1, 4, 32, 32))
    assert tapping._LOCAL.captured is None


@on_each_device
def test_custom_taps_equal_the_default_ones():
    image = torch.randn(1, 3, 64, 64)
    models = backbone(), backbone(taps=["layer2.0", "layer3.0", "layer4.0"])
    default, custom = (model.eval()(image).assignments[0] for model in models)
    assert_same(default, custom)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(hierarchical_level=6), "between 0 and 5, .* got 6"),
        (dict(hierarchical_level=-1), "between 0 and 5, .* got -1"),
        (dict(downsampling="dcn"), "'deform' or 'original', got 'dcn'"),
        (dict(taps=["layer9.0"], hierarchical_level=1), "got 'layer9.0'"),
        (
            dict(taps=["layer1.0"], hierarchical_level=1),
            r"tap 'layer1\.0' to run and to halve the resolution of a map; these .*'layer2\.0'",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        backbone(**options)
