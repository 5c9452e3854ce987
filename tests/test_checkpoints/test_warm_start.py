"""Warm starts: what checkpoints of the hosts have in common with a model, and the table of it."""

import pytest
import torch
import torchvision
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint as host_load_checkpoint

from hcformer_mm.checkpoints.hcformer_d2.convert import build
from hcformer_mm.checkpoints.warm_start import warm_start, warm_start_file
from hcformer_mm.utils.config import find_config, without_pretrained
from tests.helpers.released_small import small
from tests.test_models.test_backbones.test_swin import authors_checkpoint, pretrained

R50_PLUS = "hcformer-plus_r50_8xb2-lsj-100e_coco-panoptic"
SWIN_S = "hcformer_swin-s-p4-w7-224_8xb2-lsj-50e_coco-panoptic"


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.state_dict()


def host(name, **overrides):
    """The weights of a detector of mmdet, with random values."""
    config = Config.fromfile(find_config(f"mmdet::{name}"))
    config.merge_from_dict(overrides)
    init_default_scope("mmdet")
    return randomized(MODELS.build(without_pretrained(config.model)))


def model_of(name, **overrides):
    config = Config.fromfile(find_config(name))
    config.merge_from_dict(overrides)
    return build(config).state_dict()


def assert_loaded(result, tensors, names):
    for ours, theirs in names.items():
        assert torch.equal(result.state_dict[ours], tensors[theirs]), ours


def test_mask2former_r50():
    tensors = host("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py")
    model = model_of(R50_PLUS)
    result = warm_start(tensors, model)
    head = "panoptic_head"
    layer = f"{head}.transformer_decoder.layers.7"
    pixel_decoder = f"{head}.pixel_decoder.input_convs.0"
    assert_loaded(
        result,
        tensors,
        {
            "backbone.backbone.layer4.2.conv3.weight": "backbone.layer4.2.conv3.weight",
            # Of the deformable convolution, that takes the plain one's place.
            "backbone.backbone.layer2.0.conv2.weight": "backbone.layer2.0.conv2.weight",
            f"{layer}.cross_attn.attn.in_proj_weight": f"{layer}.cross_attn.attn.in_proj_weight",
            f"{layer}.norms.2.bias": f"{layer}.norms.2.bias",
            f"{head}.query_feat.weight": f"{head}.query_feat.weight",
            f"{head}.cls_embed.bias": f"{head}.cls_embed.bias",
            f"{head}.mask_embed.4.weight": f"{head}.mask_embed.4.weight",
            "neck.input_proj.conv.weight": f"{pixel_decoder}.conv.weight",
            "neck.input_proj.gn.bias": f"{pixel_decoder}.gn.bias",
        },
    )
    # Of its three maps the first is the coarsest.
    level = f"{head}.level_embed.weight"
    assert torch.equal(result.state_dict[level], tensors[level][:1])
    assert result.misfits == {}
    assert all(name.startswith((f"{head}.pixel", f"{layer[:-1]}8")) for name in result.unused)
    # The deformable part, clusters, encoder layers and the mask projection are all that is new.
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
    tensors = host(name)
    result = warm_start(tensors, model_of(SWIN_S))
    assert result.parts["backbone.backbone"] == (351, 351, 0)
    assert result.parts["panoptic_head.transformer_decoder"] == (146, 146, 0)
    merging = "stages.0.downsample.reduction.weight"
    assert_loaded(result, tensors, {f"backbone.backbone.{merging}": f"backbone.{merging}"})


def test_other_shapes_are_listed():
    tensors = host("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    result = warm_start(tensors, model_of("hcformer_r50_8xb2-160k_ade20k-512x512"))
    assert list(result.misfits.values()) == [
        "panoptic_head.cls_embed.weight (81, 256) does not fit decode_head.cls_embed.weight "
        "(151, 256)",
        "panoptic_head.cls_embed.bias (81,) does not fit decode_head.cls_embed.bias (151,)",
    ]
    assert result.parts["decode_head"][2] == 2
    assert "decode_head.query_embed.weight" in result.state_dict


def test_decoders_of_another_kind_stay_out():
    """The norms of Mask2Former's layers stand in another order than those of DETR's."""
    tensors = host("mask2former/mask2former_r50_8xb2-lsj-50e_coco-panoptic.py")
    options = {"model.panoptic_head.decoder": "standard"}
    result = warm_start(tensors, model_of(R50_PLUS, **options))
    assert result.parts["panoptic_head.transformer_decoder"][1] == 0
    assert "panoptic_head.mask_embed.0.weight" in result.state_dict


def test_maskformer():
    tensors = host("maskformer/maskformer_r50_ms-16xb1-75e_coco.py")
    name = "hcformer-plus_r50_standard-decoder_8xb2-lsj-100e_coco-panoptic"
    layers = {"model.panoptic_head.transformer_decoder.num_layers": 6}
    result = warm_start(tensors, model_of(name, **layers))
    assert result.parts["panoptic_head.transformer_decoder"] == (110, 110, 0)
    assert result.misfits == {}


def as_torchvision():
    return torchvision.models.resnet50().state_dict(), ""


def as_mmpretrain():
    cfg = dict(type="mmpretrain.ResNet", depth=50)
    return {f"backbone.{k}": v for k, v in randomized(MODELS.build(cfg)).items()}, "backbone."


@pytest.mark.parametrize("donor", [as_torchvision, as_mmpretrain])
def test_backbones_of_resnet(donor):
    tensors, prefix = donor()
    result = warm_start({**tensors, "head.fc.weight": torch.zeros(2, 3)}, model_of(R50_PLUS))
    # All but the biases and the offsets of the six deformable convolutions.
    assert result.parts["backbone.backbone"] == (283, 265, 0)
    assert all(name.startswith("backbone.backbone.") for name in result.state_dict)
    assert "head.fc.weight" in result.unused
    name = "layer3.0.downsample.0.weight"
    assert_loaded(result, tensors, {f"backbone.backbone.{name}": f"{prefix}{name}"})


def test_backbones_of_swins_authors(tmp_path):
    """They arrive as the host itself loads them, with ``convert_weights``."""
    config = small("Swin-S").config
    arch = dict(depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8))
    config.merge_from_dict({f"model.backbone.backbone.{key}": arch[key] for key in arch})
    model = build(config).state_dict()
    tensors = authors_checkpoint()
    result = warm_start(tensors, model)
    path = tmp_path / "swin.pth"
    torch.save(dict(model=tensors), path)
    bare, _ = pretrained("mmdet", path, convert_weights=True)
    expected = bare.state_dict()
    # The output norm is not theirs, and this file has no index tables, which are computed.
    for name in model:
        prefix, _, rest = name.partition("backbone.backbone.")
        if not prefix and not rest.startswith("norm3.") and "position_index" not in rest:
            assert torch.equal(result.state_dict[name], expected[rest]), name
    assert result.parts["backbone.backbone"] == (85, 78, 0)
    assert sorted(result.unused) == ["backbone.norm.bias", "backbone.norm.weight"]


def test_the_file_is_for_load_from(tmp_path):
    source, target = tmp_path / "resnet.pth", tmp_path / "warm.pth"
    tensors = as_torchvision()[0]
    torch.save(tensors, source)
    result = warm_start_file(source, target, R50_PLUS)
    config = Config.fromfile(find_config(R50_PLUS))
    model = build(config)
    host_load_checkpoint(model, str(target), strict=False)
    weights = model.state_dict()
    for name, value in result.state_dict.items():
        assert torch.equal(weights[name], value)
    assert torch.equal(weights["backbone.backbone.conv1.weight"], tensors["conv1.weight"])
    with pytest.raises(ValueError, match=r"expected a \.pth file to write"):
        warm_start_file(source, tmp_path / "warm.safetensors", R50_PLUS)


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
    assert result.table() == "\n".join(
        (
            "                                 tensors   loaded  other shape  not in the file",
            "backbone.backbone                      1        1            0                0",
            "backbone.clusterings                   1        0            0                1",
            "decode_head                            1        0            1                0",
            "decode_head.transformer_decoder        1        0            0                1",
            "all                                    4        1            1                2",
            "panoptic_head.cls_embed.weight (6, 4) does not fit decode_head.cls_embed.weight "
            "(5, 4)",
            "2 tensors of panoptic_head.pixel_decoder not used",
            "1 tensor of fc.weight not used",
        )
    )


def test_refuses_what_has_nothing_in_common():
    model = {"backbone.backbone.conv1.weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"with tensors in common .*, got roi_head\.x"):
        warm_start({"roi_head.x": torch.zeros(1)}, model)
    with pytest.raises(ValueError, match=r"hcformer_d2_to_mm\.py converts the released HCFormer"):
        warm_start({"sem_seg_head.predictor.class_embed.bias": torch.zeros(1)}, model)
