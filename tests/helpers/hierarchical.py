"""Every hierarchical family of backbones that OpenMMLab and timm register: the contract with each.

``python -m tests.helpers.hierarchical`` prints the table of docs/backbones.md.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from hcformer_mm.models.backbones import taps as tapping
from hcformer_mm.ops.neighborhood import coarse_size

from .models import data_sample, model_config

TIMM = """
botnet26t_256 cait_xxs24_224:flat coat_lite_tiny coatnet_pico_rw_224 convit_tiny:flat
convnext_atto cpubone_nano crossvit_9_240:flat csatv2 cspdarknet53 cspnext_tiny cspresnet50
darknet17 davit_tiny densenet121 dla46_c dpn48b edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_lite0 efficientvim_m1 efficientvit_b0 efficientvit_m0
ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050
hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small legacy_seresnet18 levit_128s
lowformer_b0 mambaout_femto maxvit_pico_rw_256 mnasnet_050 mobilenetv3_small_050
mobilenetv4_conv_small mobilenetv5_base mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny
nasnetalarge nest_tiny nextvit_small nfnet_l0 pit_ti_224 pnasnet5large poolformer_s12 pvt_v2_b0
rdnet_tiny regnetx_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d resnet10t
resnetv2_50 rexnet_100 sam2_hiera_tiny selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s050
swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256
tiny_vit_5m_224 tresnet_m twins_svt_small vgg11 visformer_tiny
vitamin_small_224 volo_d1_224 xception xception41
"""
"""One small member of each module of timm 1.0.31 with a hierarchy; ``:flat`` marks others."""

SWIN = dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
PYRAMID = dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
STAGES = dict(out_indices=(0, 1, 2, 3))
HRNET = {
    f"stage{i + 1}": dict(
        num_modules=1,
        num_branches=i + 1,
        block="BASIC" if i else "BOTTLENECK",
        num_blocks=(1,) * (i + 1),
        num_channels=tuple(8 * 2**branch for branch in range(i + 1)),
    )
    for i in range(4)
}
TWINS = dict(
    embed_dims=[8, 16, 32, 64],
    num_heads=[1, 2, 4, 8],
    mlp_ratios=[4, 4, 4, 4],
    out_indices=(0, 1, 2, 3),
    depths=[1, 1, 1, 1],
    sr_ratios=[8, 4, 2, 1],
)
OPENMMLAB: list[dict[str, Any]] = [
    dict(type="mmpretrain.VGG", depth=11, out_indices=(0, 1, 2, 3, 4)),
    dict(type="mmpretrain.RegNet", arch="regnetx_400mf", **STAGES),
    dict(type="mmpretrain.ResNet", depth=18, **STAGES),
    dict(type="mmpretrain.ResNetV1c", depth=18, **STAGES),
    dict(type="mmpretrain.ResNetV1d", depth=18, **STAGES),
    dict(type="mmpretrain.ResNeXt", depth=50, **STAGES),
    dict(type="mmpretrain.ResNeSt", depth=50, **STAGES),
    dict(type="mmpretrain.SEResNet", depth=50, **STAGES),
    dict(type="mmpretrain.SEResNeXt", depth=50, **STAGES),
    dict(type="mmpretrain.ShuffleNetV1", out_indices=(0, 1, 2)),
    dict(type="mmpretrain.ShuffleNetV2", out_indices=(0, 1, 2, 3)),
    dict(type="mmpretrain.MobileNetV2", widen_factor=0.25, out_indices=(1, 2, 4, 7)),
    dict(type="mmpretrain.MobileNetV3", arch="small_050", out_indices=(0, 3, 8, 11)),
    dict(type="mmpretrain.SwinTransformer", arch=SWIN, window_size=4, pad_small_map=True, **STAGES),
    dict(type="mmpretrain.SwinTransformerV2", arch="tiny", pad_small_map=True, **STAGES),
    dict(type="mmpretrain.Res2Net", depth=50, **STAGES),
    dict(type="mmpretrain.RepVGG", arch="A0", **STAGES),
    dict(type="mmpretrain.PCPVT", arch="small", **STAGES),
    dict(type="mmpretrain.SVT", arch="small", **STAGES),
    dict(type="mmpretrain.EfficientNet", arch="b0", out_indices=(2, 3, 4, 6)),
    dict(type="mmpretrain.EfficientNetV2", arch="b0", out_indices=(2, 3, 5, 6)),
    dict(type="mmpretrain.ConvNeXt", arch="atto", gap_before_final_norm=False, **STAGES),
    dict(type="mmpretrain.HRNet", arch="w18"),
    dict(type="mmpretrain.EdgeNeXt", arch="xxsmall", gap_before_final_norm=False, **STAGES),
    dict(type="mmpretrain.CSPDarkNet", depth=53, out_indices=(1, 2, 3, 4)),
    dict(type="mmpretrain.CSPResNet", depth=50, **STAGES),
    dict(type="mmpretrain.CSPResNeXt", depth=50, **STAGES),
    dict(type="mmpretrain.RepLKNet", arch="31B", **STAGES),
    dict(type="mmpretrain.PoolFormer", arch="s12", out_indices=(0, 2, 4, 6)),
    dict(type="mmpretrain.RIFormer", arch="s12", out_indices=(0, 2, 4, 6)),
    dict(type="mmpretrain.DenseNet", arch="121", **STAGES),
    dict(type="mmpretrain.VAN", arch="tiny", **STAGES),
    dict(type="mmpretrain.InceptionV3"),
    dict(type="mmpretrain.MobileOne", arch="s0", **STAGES),
    dict(type="mmpretrain.EfficientFormer", arch="l1", reshape_last_feat=True, **STAGES),
    dict(type="mmpretrain.MViT", arch="tiny", out_scales=(0, 1, 2, 3)),
    dict(type="mmpretrain.HorNet", arch="tiny", gap_before_final_norm=False, **STAGES),
    dict(type="mmpretrain.MobileViT", arch="xx_small", out_indices=(1, 2, 3, 4)),
    dict(type="mmpretrain.DaViT", arch="tiny", **STAGES),
    dict(type="mmpretrain.TinyViT", arch="5m", gap_before_final_norm=False, **STAGES),
    dict(type="mmpretrain.LeViT", arch="128s", out_indices=(0, 1, 2)),
    dict(type="mmpretrain.PyramidVig", arch="tiny", k=3),
    dict(type="mmdet.RegNet", arch="regnetx_400mf"),
    dict(type="mmdet.ResNet", depth=18),
    dict(type="mmdet.ResNetV1d", depth=50),
    dict(type="mmdet.ResNeXt", depth=50),
    dict(type="mmdet.ResNeSt", depth=50),
    dict(type="mmdet.Res2Net", depth=50),
    dict(type="mmdet.HRNet", extra=HRNET),
    dict(type="mmdet.DetectoRS_ResNet", depth=50),
    dict(type="mmdet.MobileNetV2", widen_factor=0.25, out_indices=(1, 2, 4, 7)),
    dict(type="mmdet.Darknet", out_indices=(2, 3, 4, 5)),
    dict(type="mmdet.CSPDarknet", widen_factor=0.25, out_indices=(1, 2, 3, 4)),
    dict(type="mmdet.CSPNeXt", widen_factor=0.25, out_indices=(1, 2, 3, 4)),
    dict(type="mmdet.SwinTransformer", window_size=4, **SWIN, **STAGES),
    dict(type="mmdet.PyramidVisionTransformer", **PYRAMID, **STAGES),
    dict(type="mmdet.PyramidVisionTransformerV2", **PYRAMID, **STAGES),
    dict(type="mmdet.EfficientNet", arch="b0", out_indices=(2, 3, 4, 6)),
    dict(type="mmseg.ResNet", depth=18),
    dict(type="mmseg.ResNetV1c", depth=18),
    dict(type="mmseg.ResNetV1d", depth=18),
    dict(type="mmseg.ResNeXt", depth=50),
    dict(type="mmseg.ResNeSt", depth=50),
    dict(type="mmseg.MobileNetV2", widen_factor=0.25, out_indices=(1, 2, 4, 6)),
    dict(type="mmseg.MobileNetV3", arch="small", out_indices=(0, 1, 4, 11)),
    dict(type="mmseg.SwinTransformer", window_size=4, **SWIN, **STAGES),
    dict(type="mmseg.MixVisionTransformer", **PYRAMID, **STAGES),
    dict(type="mmseg.PCPVT", **TWINS),
    dict(type="mmseg.SVT", **TWINS, windiow_sizes=[7, 7, 7, 7]),
    dict(type="mmseg.HRNet", extra=HRNET),
    dict(
        type="mmseg.STDCNet",
        stdc_type="STDCNet1",
        in_channels=3,
        channels=(32, 64, 256, 512, 1024),
        bottleneck_type="cat",
        num_convs=4,
        norm_cfg=dict(type="BN"),
        act_cfg=dict(type="ReLU"),
    ),
    dict(
        type="mmseg.MSCAN",
        embed_dims=[8, 16, 32, 64],
        depths=[1, 1, 1, 1],
        norm_cfg=dict(type="BN"),
    ),
]

FAMILIES: dict[str, dict[str, Any]] = {
    **{
        f"timm.{name}": dict(type="mmpretrain.TIMMBackbone", model_name=name, features_only=True)
        for name in TIMM.split()
        if ":" not in name
    },
    **{config["type"]: config for config in OPENMMLAB},
}

WHY_NOT = {
    "timm.hiera_tiny_224": "tokens in the order of windows, without their size",
    "timm.inception_resnet_v2": "unpadded convolutions",
    "timm.inception_v3": "unpadded convolutions",
    "timm.inception_v4": "unpadded convolutions",
    "timm.levit_128s": "tokens without their size",
    "timm.sequencer2d_s": "strides 7 and 14",
    "mmpretrain.InceptionV3": "unpadded convolutions",
    "mmpretrain.LeViT": "tokens without their size",
}
"""Why a family has no taps."""


@dataclass
class Outcome:
    """How the contract went.

    Attributes:
        taps: Names of the taps.
        odd: How odd sides go: ``"yes"``, ``"pad"`` or ``"fixed size"``.
        error: Why the backbone does not work; empty if it does.
    """

    taps: list[str]
    odd: str = ""
    error: str = ""


def wrap(name: str) -> tuple[nn.Module, nn.Module]:
    """A family in an HCBackbone, and bare with the same weights, in evaluation mode.

    Raises:
        ValueError: The family has no taps.
    """
    torch.manual_seed(0)
    bare = MODELS.build(ConfigDict(FAMILIES[name]))
    level = min(3, len(tapping.dry_run(bare).find_taps()))
    if level == 0:
        raise ValueError(WHY_NOT[name])
    model = MODELS.build(
        dict(
            type="hcformer_mm.HCBackbone",
            backbone=ConfigDict(FAMILIES[name]),
            downsampling="original",
            hierarchical_level=level,
        )
    )
    # Not strict, as Swin V2 drops the buffers that it computes.
    model.backbone.load_state_dict(bare.state_dict(), strict=False)
    return set_mode(model, False), set_mode(bare, False)


def set_mode(network: nn.Module, training: bool) -> nn.Module:
    """Set the mode; ``train`` of some backbones returns None."""
    network.train(training)
    return network


def describe(name: str) -> Outcome:
    """Wrap a family and compare its outputs with the bare one's, bit for bit."""
    try:
        model, bare = wrap(name)
    except ValueError as error:
        return Outcome([], error=str(error))
    size = image_size(model)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        ours, theirs = model(image), maps_of(bare, image)
    assert len(ours.assignments) == len(model.taps)
    for a, b, last in zip(ours, theirs, model.channels_last, strict=True):
        assert torch.equal(a, b.movedim(-1, 1) if last else b)
    return Outcome(model.taps, odd=odd_sides(model, bare, size))


def train_and_predict(name: str) -> None:
    """Take a step of a small HCFormer on a family, and predict."""
    backbone, bare = wrap(name)
    size = image_size(backbone)
    image = torch.randn(2, 3, *size)
    ours, theirs = (backward(set_mode(network, True), image) for network in (backbone, bare))
    expected = {n for n, _ in backbone.named_parameters() if n.startswith("clusterings.")}
    expected |= {f"backbone.{n}" for n in theirs}
    assert expected <= ours, f"without a gradient: {expected - ours}"

    with torch.no_grad():
        channels = backbone(image)[-1].shape[1]
    config = model_config(**{"panoptic_head.in_channels": channels, "train_cfg.num_points": 64})
    model = MODELS.build(config)
    model.backbone = backbone
    set_mode(model, True)
    inputs = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)]
    samples = [data_sample(size) for _ in range(2)]
    log = model.train_step(
        dict(inputs=inputs, data_samples=samples),
        OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-4)),
    )
    assert all(value.isfinite() for value in log.values()), log
    set_mode(model, False)
    (prediction,) = model.test_step(dict(inputs=inputs[:1], data_samples=[data_sample(size)]))
    assert prediction.pred_panoptic_seg.sem_seg.shape[-2:] == size


def maps_of(network: nn.Module, image: Tensor) -> tuple[Tensor, ...]:
    """The maps that a bare backbone returns."""
    maps = network(image)
    return (maps,) if isinstance(maps, Tensor) else tuple(maps)


def backward(network: nn.Module, image: Tensor) -> set[str]:
    """Names of the parameters that get a gradient from the outputs, all of them finite."""
    features = network(image)
    assignments = getattr(features, "assignments", [])
    features = (features,) if isinstance(features, Tensor) else tuple(features)
    loss: Any = sum((x**2).mean() for x in (*features, *assignments))
    loss.backward()
    reached = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    for name, gradient in reached.items():
        assert gradient.isfinite().all(), f"not finite: {name}"
    network.zero_grad(set_to_none=True)
    return set(reached)


def image_size(network: nn.Module) -> tuple[int, int]:
    """The first size of a dry run that a backbone accepts."""
    for size in tapping.DRY_RUN_SIZES:
        try:
            with torch.no_grad():
                features = network(torch.zeros(1, 3, *size))
        # Backbones reject a size with exceptions of any type.
        except Exception:
            continue
        # MobileViT V2 enlarges maps with odd sides to even ones.
        if tuple(features[-1].shape[-2:]) == coarse_size(*features.assignments[-1].shape[-2:]):
            return size
    raise AssertionError("no size of a dry run works")


def odd_sides(backbone: nn.Module, bare: nn.Module, size: tuple[int, int]) -> str:
    """How an image with odd sides goes: as it is, after padding, or not even in the bare one."""
    image = torch.randn(1, 3, size[0] + 13, size[1] - 5)
    with torch.no_grad():
        try:
            maps_of(bare, image)
        except Exception:
            return "fixed size"
        try:
            backbone(image)
        except ValueError as error:
            assert "pad images to a multiple" in str(error) or "each level half" in str(error)
            return "pad"
    return "yes"


def row(name: str, outcome: Outcome) -> str:
    """The family's row in docs/backbones.md."""
    taps = ", ".join(f"`{tap}`" for tap in outcome.taps)
    return f"| {name} | {taps or 'none: ' + outcome.error} | {outcome.odd} |"


def main() -> None:
    logging.disable(logging.CRITICAL)
    for name in FAMILIES:
        print(row(name, describe(name)), flush=True)


if __name__ == "__main__":
    main()
