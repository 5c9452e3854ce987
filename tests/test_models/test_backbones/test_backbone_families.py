"""The contract of HCBackbone, for every family of backbones."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper

from tests.helpers.devices import assert_same, on_each_device
from tests.helpers.models import backbone, data_sample, model_config


@dataclass
class Family:
    """A small backbone.

    Attributes:
        config: Its config, without ``out_indices``.
        taps: Its taps, which a dry run finds.
        outs: ``out_indices`` of the maps of strides 4 to 32.
        rounds_up: Whether its downsamplings keep the last line of an odd side.
        undeformable: Error message for ``downsampling="deform"``; None where it works.
    """

    config: dict[str, Any]
    taps: list[str]
    outs: tuple[int, ...] = (0, 1, 2, 3)
    rounds_up: bool = True
    undeformable: str | None = None

    def build(self, outs=None, **options):
        config = ConfigDict(self.config, out_indices=outs or self.outs)
        return backbone(config, **dict(dict(downsampling="original"), **options))


SWIN = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
PYRAMID = dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
RESNET_TAPS = ["layer2.0", "layer3.0", "layer4.0"]
SWIN_TAPS = [f"stages.{stage}.downsample" for stage in (0, 1, 2)]
PYRAMID_TAPS = ["layers.1.0", "layers.2.0", "layers.3.0"]
TIMM = dict(features_only=True, pretrained=False)
TOKENS = "which yields tokens; use downsampling='original'"
GROUPS = "square convolution without groups .* use downsampling='original'"

FAMILIES = {
    "resnet": Family(dict(type="mmdet.ResNet", depth=18, norm_eval=False), RESNET_TAPS),
    "swin-mmdet": Family(
        dict(type="mmdet.SwinTransformer", window_size=4, **SWIN), SWIN_TAPS, undeformable=TOKENS
    ),
    "swin-mmseg": Family(
        dict(type="mmseg.SwinTransformer", window_size=4, **SWIN), SWIN_TAPS, undeformable=TOKENS
    ),
    "swin-mmpretrain": Family(
        dict(type="mmpretrain.SwinTransformer", arch=SWIN, window_size=4, pad_small_map=True),
        SWIN_TAPS,
        undeformable=TOKENS,
    ),
    "convnext": Family(
        dict(
            type="mmpretrain.ConvNeXt",
            arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 32, 64]),
            gap_before_final_norm=False,
        ),
        [f"downsample_layers.{stage}" for stage in (1, 2, 3)],
        rounds_up=False,
    ),
    "pvt": Family(
        dict(type="mmdet.PyramidVisionTransformer", **PYRAMID),
        PYRAMID_TAPS,
        rounds_up=False,
        undeformable=TOKENS,
    ),
    "pvt-v2": Family(
        dict(type="mmdet.PyramidVisionTransformerV2", **PYRAMID), PYRAMID_TAPS, undeformable=TOKENS
    ),
    "mit": Family(
        dict(type="mmseg.MixVisionTransformer", **PYRAMID), PYRAMID_TAPS, undeformable=TOKENS
    ),
    "mobilenet-v2": Family(
        dict(type="mmpretrain.MobileNetV2", widen_factor=0.25),
        outs=(1, 2, 4, 7),
        taps=["layer3.0", "layer4.0", "layer6.0"],
        undeformable=GROUPS,
    ),
    "efficientnet": Family(
        dict(type="mmpretrain.EfficientNet", arch="b0"),
        outs=(2, 3, 4, 6),
        taps=["layers.3.0", "layers.4.0", "layers.5.0"],
        undeformable=GROUPS,
    ),
    "timm-efficientnet": Family(
        dict(type="mmpretrain.TIMMBackbone", model_name="test_efficientnet", **TIMM),
        outs=(1, 2, 3, 4),
        taps=["timm_model.blocks.2.0", "timm_model.blocks.3.0", "timm_model.blocks.4.0"],
        undeformable=GROUPS,
    ),
    # timm flattens containers of its feature extractors: their modules live under other names.
    "timm-convnext": Family(
        dict(type="mmseg.TIMMBackbone", model_name="test_convnext", **TIMM),
        taps=[f"timm_model.stages_{stage}.downsample" for stage in (1, 2, 3)],
        rounds_up=False,
    ),
}

over_families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@on_each_device
@over_families
def test_assignments(family):
    model = family.build().eval()
    features = model(torch.randn(2, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(feature.shape[-2:]) for feature in features] == sizes
    assert [tuple(a.shape) for a in features.assignments] == [(2, 9, *size) for size in sizes[:3]]
    assert len(features.scales) == 3
    for assignment in features.assignments:
        torch.testing.assert_close(assignment.sum(1), torch.ones_like(assignment[:, 0]))

    odd = torch.randn(1, 3, 76, 52)  # maps of 19×13, 10×7, 5×4 and 3×2, where sides round up
    if family.rounds_up:
        sizes = [tuple(assignment.shape[-2:]) for assignment in model(odd).assignments]
        assert sizes == [(19, 13), (10, 7), (5, 4)]
    else:
        with pytest.raises(ValueError, match=r"to halve a map of \(19, 13\) .*pad images"):
            model(odd)

    deepest = family.build(hierarchical_level=1)
    assert deepest.taps == model.taps[2:]
    assert len(deepest.eval()(torch.randn(1, 3, 64, 96)).assignments) == 1


@on_each_device
@over_families
@pytest.mark.parametrize("training", [False, True])
def test_is_the_bare_backbone_bit_for_bit(family, training):
    model = family.build()
    bare = MODELS.build(ConfigDict(family.config, out_indices=family.outs))
    assert {name for name in model.state_dict() if not name.startswith("clusterings.")} == {
        f"backbone.{name}" for name in bare.state_dict()
    }
    bare.load_state_dict(model.backbone.state_dict())
    image = torch.randn(2, 3, 64, 96)

    def run(network):
        network.train(training)  # some return None
        torch.manual_seed(1)
        return network(image)

    features = run(model)
    for ours, theirs in zip(features, run(bare), strict=True):
        assert_same(ours, theirs)
    # Statistics that a step in training mode updates.
    theirs = bare.state_dict()
    for name, ours in model.backbone.state_dict().items():
        assert_same(ours, theirs[name])
    # The same seed gives the same assignments.
    for first, second in zip(features.assignments, run(model).assignments, strict=True):
        assert_same(first, second)


@on_each_device
@over_families
def test_gradients(family):
    """The deepest assignment reaches the stem; maps and assignments reach every parameter."""
    model = family.build().train()
    features = model(torch.randn(2, 3, 64, 96))
    # The first parameter of every family belongs to the stem.
    stem = next(iter(model.backbone.parameters()))
    squares = [(a**2).mean() for a in features.assignments]
    (gradient,) = torch.autograd.grad(squares[-1], stem, retain_graph=True)
    assert gradient.abs().sum() > 0
    (sum((f**2).mean() for f in features) + sum(squares)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@on_each_device
@over_families
def test_deformable_downsampling(family):
    if family.undeformable:
        with pytest.raises(ValueError, match=family.undeformable):
            family.build(downsampling="deform")
        return
    model = family.build(downsampling="deform")
    features = model(torch.randn(2, 3, 64, 96))
    assert [tuple(a.shape[-2:]) for a in features.assignments] == [(16, 24), (8, 12), (4, 6)]
    sum((a**2).mean() for a in features.assignments).backward()
    offsets = [p for name, p in model.named_parameters() if "conv_offset" in name]
    assert offsets and all(p.grad is not None and p.grad.isfinite().all() for p in offsets)


@over_families
def test_a_dry_run_finds_the_taps(family):
    config = ConfigDict(family.config, out_indices=family.outs[-1:])
    assert backbone(config, downsampling="original").taps == family.taps


@over_families
def test_trains_and_predicts_in_maskformer(family):
    """Every parameter gets a gradient from the last map, the only one that the head reads."""
    model = family.build(outs=family.outs[-1:])
    with torch.no_grad():
        (last,) = model.eval()(torch.randn(1, 3, 64, 96))
    config = model_config(
        **{"panoptic_head.in_channels": last.shape[1], "train_cfg.num_points": 64}
    )
    config.backbone = ConfigDict(
        type="hcformer_mm.HCBackbone",
        backbone=dict(family.config, out_indices=family.outs[-1:]),
        downsampling="original",
    )
    model = MODELS.build(config).train()
    inputs = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    reached = set()
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: reached.add(name))
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-3))
    scales = [clustering.scale.item() for clustering in model.backbone.clusterings]
    log = model.train_step(
        dict(inputs=inputs, data_samples=[data_sample((64, 96)) for _ in range(2)]), optimizer
    )
    assert all(value.isfinite() for value in log.values())
    assert reached == {name for name, _ in model.named_parameters()}
    assert scales != [clustering.scale.item() for clustering in model.backbone.clusterings]

    model.eval()
    (prediction,) = model.test_step(
        dict(inputs=inputs[:1], data_samples=[data_sample((64, 96), original=(128, 192))])
    )
    assert prediction.pred_panoptic_seg.sem_seg.shape[-2:] == (128, 192)
    assert prediction.pred_instances.masks.shape[-2:] == (128, 192)
