"""Rules between the two namings, and architectures found by names and shapes."""

from collections import OrderedDict

import pytest
import torch
from mmdet.models.backbones.swin import swin_converter
from mmengine.config import Config

from hcformer_mm.checkpoints.hcformer_d2 import (
    architecture_of_config,
    choose_config,
    find_architecture,
)
from hcformer_mm.checkpoints.hcformer_d2.architecture import known_architectures, options_for
from hcformer_mm.checkpoints.hcformer_d2.key_mapping import PATCH_MERGING, Rule, rules
from hcformer_mm.utils.config import CONFIGS
from tests.helpers.released_checkpoints import ResNetShape, SwinShape, model_shapes, released_keys

SWIN_L = SwinShape(width=192, heads=(6, 12, 24, 48), window=12)
MODELS = {
    "hcformer_r50_coco_panoptic": dict(backbone=ResNetShape()),
    "hcformer_plus_r50_coco_panoptic": dict(backbone=ResNetShape(), encoder_layers=6),
    "hcformer_swin_s_coco_panoptic": dict(backbone=SwinShape()),
    "hcformer_plus_swin_l_coco_panoptic": dict(backbone=SWIN_L, encoder_layers=6, queries=200),
    "hcformer_plus_r50_standard_decoder_coco_panoptic": dict(
        backbone=ResNetShape(), encoder_layers=6, standard=True
    ),
}


def test_model_shapes_equal_the_released_ones():
    assert {name: model_shapes(**shape) for name, shape in MODELS.items()} == released_keys()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", ["panoptic_head", "decode_head"])
def test_every_name_has_one_other_and_comes_back(name, head):
    shapes = released_keys()[name]
    architecture = find_architecture(shapes)
    names = rules(
        family=architecture.family,
        level=architecture.level,
        deformable=architecture.downsampling == "deform",
        decoder=architecture.decoder,
        head=head,
    )

    def other(name, reverse=False):
        fitting = (rule.rename(name, reverse=reverse) for rule in names)
        return next(new for new in fitting if new is not None)

    renamed = [other(name) for name in shapes]
    assert len(set(renamed)) == len(shapes)
    assert [other(name, reverse=True) for name in renamed] == list(shapes)


def test_a_rule_fits_whole_names():
    rule = Rule("a.{i}.b{k}.*", "c.{k}.{i}.*")
    assert rule.rename("a.3.b12.weight") == "c.12.3.weight"
    assert rule.rename("c.12.3.running_mean", reverse=True) == "a.3.b12.running_mean"
    for name in ("xa.3.b1.weight", "a.3.b1.x.weight", "a.3.b.weight", "a_3.b1.weight", "a.3.b1."):
        assert rule.rename(name) is None


def test_order_of_patch_merging():
    """Every number encodes its place as 100·row + 10·column + channel."""
    released = torch.tensor([0, 1, 2, 100, 101, 102, 10, 11, 12, 110, 111, 112])
    ours = torch.tensor([0, 10, 100, 110, 1, 11, 101, 111, 2, 12, 102, 112])
    assert torch.equal(PATCH_MERGING.to_ours(released), ours)
    assert torch.equal(PATCH_MERGING.to_released(ours), released)
    weight = torch.randn(6, 20)
    for value, kind in ((weight, "reduction.weight"), (weight[0], "norm.bias")):
        theirs = swin_converter(OrderedDict({f"layers.0.downsample.{kind}": value}))
        assert torch.equal(
            PATCH_MERGING.to_ours(value), theirs[f"backbone.stages.0.downsample.{kind}"]
        )
        assert torch.equal(PATCH_MERGING.to_released(PATCH_MERGING.to_ours(value)), value)


R50 = "hcformer_r50_8xb2-lsj-50e_coco-panoptic"
R50_STANDARD = "hcformer-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic"
SWIN_S = "hcformer_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic"
HEAD, LAYERS = "model.panoptic_head", "transformer_decoder.num_layers"
LEVEL, DOWNSAMPLING = "model.backbone.hierarchical_level", "model.backbone.downsampling"
CONFIGS_OF_SHAPES = [
    (dict(level=2), R50, {LEVEL: 2}),
    (dict(level=0), R50, {LEVEL: 0, DOWNSAMPLING: "original"}),
    (dict(backbone=ResNetShape(deformable=False)), R50, {DOWNSAMPLING: "original"}),
    (dict(decoder_layers=16), R50, {f"{HEAD}.{LAYERS}": 16}),
    (dict(queries=20), R50, {f"{HEAD}.num_queries": 20}),
    (
        dict(standard=True, decoder_layers=9),
        R50,
        {f"{HEAD}.decoder": "standard", f"{HEAD}.{LAYERS}": 9},
    ),
    (dict(standard=True, encoder_layers=6, queries=50), R50_STANDARD, {f"{HEAD}.num_queries": 50}),
    (dict(backbone=SwinShape(), level=1), SWIN_S, {LEVEL: 1}),
    (
        dict(classes=19, decoder_layers=9),
        "hcformer_r50_8xb2-90k_cityscapes-512x1024",
        {f"model.decode_head.{LAYERS}": 9},
    ),
    (dict(classes=150), "hcformer_r50_8xb2-160k_ade20k-512x512", {}),
    (dict(classes=80), "hcformer_r50_8xb2-lsj-50e_coco-instance", {}),
]


@pytest.mark.parametrize(("shape", "name", "options"), CONFIGS_OF_SHAPES)
def test_finds_config_and_overrides(shape, name, options):
    shapes = model_shapes(**dict(backbone=ResNetShape()) | shape)
    path, found = choose_config(find_architecture(shapes))
    assert (path.stem, found) == (name, options)


def test_every_config_of_the_release_is_found():
    """Configs with other backbones do not stand in the way."""
    known = list(known_architectures())
    released = {path for size in ("r50", "swin-?-") for path in CONFIGS.glob(f"hcformer/*_{size}*")}
    assert {path for path, _, _ in known} == released < set(CONFIGS.glob("hcformer/*.py"))
    for path, _, architecture in known:
        assert choose_config(architecture) == (path, {})


def test_no_config_fits():
    architecture = find_architecture(model_shapes(ResNetShape(), classes=65))
    with pytest.raises(ValueError, match=r"models of configs/hcformer, got .*65 classes"):
        choose_config(architecture)
    architecture = find_architecture(model_shapes(ResNetShape(depths=(3, 4, 23, 3))))
    with pytest.raises(ValueError, match=r"got HCFormer R101,.*(--config)"):
        choose_config(architecture)


def test_other_models_cannot_be_overridden():
    config = Config.fromfile(CONFIGS / "hcformer" / f"{R50}.py")
    assert options_for(find_architecture(model_shapes(ResNetShape(), classes=65)), config) is None


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"backbone.stem.conv1.weight": (64, 3, 7, 7)},
        {"backbone.patch_embed.proj.weight": (96, 3, 4, 4)},
        {
            "backbone.stem.0.weight": (64, 3, 7, 7),
            "sem_seg_head.predictor.query_embed.weight": (100,),
        },
    ],
)
def test_other_names_are_no_hcformer(shapes):
    with pytest.raises(ValueError, match="expected the tensors of a released HCFormer"):
        find_architecture(shapes)


def test_config_of_another_model():
    path = sorted(CONFIGS.glob("hc_fcn/hc-fcn32s*.py"))[0]
    with pytest.raises(ValueError, match=r"expected a config of HCFormer .*hc-fcn32s.*without"):
        architecture_of_config(Config.fromfile(path))
