"""HCBackbone around Swin, whose maps are tokens and whose checkpoints have several namings."""

from itertools import product

import pytest
import torch
from mmdet.models.backbones.swin import swin_converter
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from tests.helpers import reference
from tests.helpers.devices import assert_same, at_least, on_each_device
from tests.helpers.models import backbone, model_config
from tools.analysis_tools.get_flops import count_multiply_adds

SCOPES = ["mmdet", "mmseg", "mmpretrain"]
DEPTHS, HEADS = (1, 2, 1, 1), (1, 2, 4, 8)


def swin(scope, **options):
    options = dict(dict(window_size=4, out_indices=(0, 1, 2, 3)), **options)
    arch = dict(embed_dims=16, depths=DEPTHS, num_heads=HEADS)
    if scope == "mmpretrain":
        arch = dict(arch=arch, pad_small_map=True)
    return ConfigDict(type=f"{scope}.SwinTransformer", **arch, **options)


def wrapped(scope, **options):
    return backbone(swin(scope, **options), downsampling="original")


@on_each_device
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("size", [(64, 96), (76, 52), (4, 4), (5, 41)])
def test_clusters_tokens_around_patch_merging(scope, size):
    """It reads the tokens before and after patch merging, laid out as maps."""
    model = wrapped(scope).eval()
    seen = []
    for stage in model.backbone.stages:
        if stage.downsample is not None:
            stage.downsample.register_forward_hook(lambda m, args, out: seen.append((args, out)))
    features = model(torch.randn(2, 3, *size))
    assert len(seen) == len(features.assignments) == 3
    expected = [-(-side // 4) for side in size]
    for assignment, clustering, ((fine, fine_size), (coarse, coarse_size)) in zip(
        features.assignments, model.clusterings, seen, strict=True
    ):
        assert list(fine_size) == expected == list(assignment.shape[-2:])
        expected = [-(-side // 2) for side in expected]
        assert list(coarse_size) == expected
        maps = [
            x.reshape(2, *hw, -1).permute(0, 3, 1, 2)
            for x, hw in ((fine, fine_size), (coarse, coarse_size))
        ]
        assert_same(assignment, clustering(*maps))


@on_each_device
@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint")
@pytest.mark.parametrize("scope", SCOPES)
def test_checkpointing_changes_nothing(scope):
    gradients, outputs = [], []
    image = torch.randn(2, 3, 64, 64)
    for with_cp in (False, True):
        model = wrapped(scope, with_cp=with_cp, drop_path_rate=0.2).train()
        torch.manual_seed(1)
        features = model(image)
        outputs.append([*features, *features.assignments])
        loss = sum((x**2).mean() for x in features)
        (loss + sum((a**2).sum() for a in features.assignments)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for plain, checkpointed in zip(*outputs, strict=True):
        assert_same(plain, checkpointed)
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all()
        tolerances = dict(rtol=at_least(1.3e-6), atol=at_least(1e-5))
        torch.testing.assert_close(gradients[1][name], gradient, msg=name, **tolerances)


def authors_checkpoint():
    """A checkpoint of this architecture as the authors of Swin write it, with random values."""
    shapes = {"patch_embed.proj.weight": (16, 3, 4, 4), "patch_embed.proj.bias": (16,)}
    shapes |= {f"patch_embed.norm.{kind}": (16,) for kind in ("weight", "bias")}
    for i, depth in enumerate(DEPTHS):
        width = 16 * 2**i
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            shapes[f"{block}.attn.relative_position_bias_table"] = (49, HEADS[i])
            for name, (inner, outer) in {
                "attn.qkv": (width, 3 * width),
                "attn.proj": (width, width),
                "mlp.fc1": (width, 4 * width),
                "mlp.fc2": (4 * width, width),
            }.items():
                shapes[f"{block}.{name}.weight"] = (outer, inner)
                shapes[f"{block}.{name}.bias"] = (outer,)
            for norm, kind in product(("norm1", "norm2"), ("weight", "bias")):
                shapes[f"{block}.{norm}.{kind}"] = (width,)
        if i < 3:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes |= {f"layers.{i}.downsample.norm.{k}": (4 * width,) for k in ("weight", "bias")}
    # For classification only.
    shapes |= {"norm.weight": (128,), "norm.bias": (128,), "head.weight": (10, 128)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def pretrained(scope, path, **options):
    """The bare Swin and the wrapped one, both with the weights of a file."""
    prefix = dict(prefix="backbone.") if scope == "mmpretrain" else {}
    init_cfg = dict(type="Pretrained", checkpoint=str(path), **prefix)
    bare = MODELS.build(swin(scope, init_cfg=init_cfg, **options))
    model = wrapped(scope, init_cfg=init_cfg, **options)
    projections = [c.fine_proj.weight.clone() for c in model.clusterings]
    for network in (bare, model):
        network.init_weights()
    # The clustering modules, which are not in the file, keep their initialization.
    for clustering, projection in zip(model.clusterings, projections, strict=True):
        assert torch.equal(clustering.fine_proj.weight, projection)
        assert clustering.scale.item() == pytest.approx(0.1)
    return bare, model


def assert_loaded_alike(model, bare):
    theirs = bare.state_dict()
    for name, ours in model.backbone.state_dict().items():
        assert torch.equal(ours, theirs[name]), name


@pytest.mark.parametrize("scope", SCOPES)
def test_loads_checkpoints_of_openmmlab(scope, tmp_path):
    donor = MODELS.build(swin(scope))
    for parameter in donor.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / "swin.pth"
    state = {f"backbone.{name}": value for name, value in donor.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), path)
    bare, model = pretrained(scope, path)
    assert_loaded_alike(model, bare)
    assert_loaded_alike(model, donor)


def load_the_authors(scope, tmp_path):
    """mmdet converts the file when it loads it; the others read a converted one."""
    path = tmp_path / "swin.pth"
    checkpoint = authors_checkpoint()
    if scope == "mmdet":
        torch.save(dict(model=checkpoint), path)
        return pretrained(scope, path, convert_weights=True)
    torch.save(dict(state_dict=swin_converter(checkpoint)), path)
    return pretrained(scope, path)


@pytest.mark.parametrize("scope", SCOPES)
def test_loads_checkpoints_of_the_authors(scope, tmp_path):
    bare, model = load_the_authors(scope, tmp_path)
    assert_loaded_alike(model, bare)
    theirs = authors_checkpoint()
    ours = model.backbone.state_dict()
    renamed = {
        "patch_embed.proj.weight": "patch_embed.projection.weight",
        "patch_embed.norm.bias": "patch_embed.norm.bias",
        "layers.1.blocks.1.attn.qkv.weight": "stages.1.blocks.1.attn.w_msa.qkv.weight",
        "layers.3.blocks.0.attn.proj.bias": "stages.3.blocks.0.attn.w_msa.proj.bias",
        "layers.2.blocks.0.mlp.fc1.weight": "stages.2.blocks.0.ffn.layers.0.0.weight",
        "layers.2.blocks.0.mlp.fc2.bias": "stages.2.blocks.0.ffn.layers.1.bias",
        "layers.0.blocks.0.norm2.weight": "stages.0.blocks.0.norm2.weight",
        "layers.0.blocks.0.attn.relative_position_bias_table": (
            "stages.0.blocks.0.attn.w_msa.relative_position_bias_table"
        ),
    }
    for their_name, our_name in renamed.items():
        assert torch.equal(ours[our_name], theirs[their_name]), our_name


@pytest.mark.parametrize("scope", SCOPES)
def test_patch_merging_is_that_of_the_authors(scope, tmp_path):
    """OpenMMLab unfolds a window in another order; loading reorders the weights."""
    _, model = load_the_authors(scope, tmp_path)
    theirs = {name: value.double() for name, value in authors_checkpoint().items()}
    for (i, stage), size in product(
        enumerate(model.backbone.double().stages[:3]), [(6, 4), (5, 3), (1, 1)]
    ):
        tokens = torch.randn(2, size[0] * size[1], 16 * 2**i, dtype=torch.float64)
        merged, _ = stage.downsample(tokens, size)
        name = f"layers.{i}.downsample"
        norm = [theirs[f"{name}.norm.{kind}"] for kind in ("weight", "bias")]
        expected = reference.patch_merging(tokens, size, *norm, theirs[f"{name}.reduction.weight"])
        torch.testing.assert_close(merged, expected)


def test_initialization_of_a_detector_keeps_what_was_loaded(tmp_path):
    path = tmp_path / "swin.pth"
    torch.save(dict(model=authors_checkpoint()), path)
    config = model_config(**{"panoptic_head.in_channels": 128})
    init_cfg = dict(type="Pretrained", checkpoint=str(path))
    config.backbone = ConfigDict(
        type="hcformer_mm.HCBackbone",
        downsampling="original",
        backbone=swin("mmdet", out_indices=(3,), convert_weights=True, init_cfg=init_cfg),
    )
    model = MODELS.build(config)
    model.init_weights()
    bare = MODELS.build(config.backbone.backbone)
    bare.init_weights()
    assert_loaded_alike(model.backbone, bare)
    weight = model.backbone.backbone.patch_embed.projection.weight
    assert torch.equal(weight, authors_checkpoint()["patch_embed.proj.weight"])
    # Tracing, where sizes are tensors.
    assert count_multiply_adds(model, 64, 96).total() > 0
