"""The converted model is the released one: the same numbers on the same padded input."""

from itertools import product

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.structures import SegDataSample
from torch import nn

from hcformer_mm.checkpoints.hcformer_d2 import choose_config, convert, find_architecture
from hcformer_mm.checkpoints.hcformer_d2.convert import build, shapes_of
from hcformer_mm.checkpoints.hcformer_d2.key_mapping import PATCH_MERGING
from tests.helpers import reference
from tests.helpers import released_model as released
from tests.helpers.released_checkpoints import position_index, random_state, released_keys
from tests.helpers.released_small import HEADS, SWIN, small

TOLERANCE = dict(rtol=0, atol=1e-4)


def converted(state, config):
    """Our model with the weights of a released one, in evaluation mode."""
    model = build(config)
    model.load_state_dict(convert(state, config).state_dict)
    # ResNet.eval() of some hosts returns None.
    model.eval()
    return model


@torch.no_grad()
def predict(model, image):
    """The same as the oracle predicts."""
    features = model.extract_feat(image)
    head = model.panoptic_head if hasattr(model, "panoptic_head") else model.decode_head
    classes, decoded = head(features)
    _, masks = head.group(features[-1])
    return released.Prediction(classes[-1], masks[-1], decoded[-1], list(features.assignments))


def image(size=(64, 96), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_same(ours, theirs, **tolerance):
    assert len(ours.assignments) == len(theirs.assignments)
    pairs = zip(
        (ours.classes, ours.masks, ours.decoded, *ours.assignments),
        (theirs.classes, theirs.masks, theirs.decoded, *theirs.assignments),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, **tolerance)
        # Predictions that say nothing would agree as well.
        assert other.std() > 1e-2


@torch.no_grad()
def parts_are_looked_at(model, image):
    """Whether the attention of some query is masked, but not everywhere, in some layer."""
    head = model.panoptic_head if hasattr(model, "panoptic_head") else model.decode_head
    _, masks = head.group(model.extract_feat(image)[-1])
    hidden = [logits.flatten(2) < 0 for logits in masks[:-1]]
    return any((mask.any(-1) & ~mask.all(-1)).any() for mask in hidden)


def both(model, state, image, heads, swin_heads):
    theirs = released.predict(state, image, num_heads=heads, swin_heads=swin_heads)
    return predict(model, image), theirs


CASES = [
    *(
        dict(backbone=backbone, plus=plus, standard=standard)
        for backbone, plus, standard in product(("R50", "Swin-S"), (False, True), (False, True))
    ),
    *(
        dict(backbone=backbone, level=level)
        for backbone, level in product(("R50", "Swin-S"), (0, 1, 2))
    ),
    dict(deformable=False),
    dict(deformable=False, level=1),
    dict(semantic=True),
    dict(backbone="Swin-S", semantic=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_small_models(case):
    state, _, _, swin_heads = model = small(**case)
    ours = converted(state, model.config)
    assert_same(*both(ours, state, image(), HEADS, swin_heads), **TOLERANCE)
    assert case.get("standard") or parts_are_looked_at(ours, image())
    # Without float32's rounding: whatever is left is the encoding of positions, which is float32.
    double = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    assert_same(
        *both(ours.double(), double, image((32, 96)).double(), HEADS, swin_heads),
        rtol=0,
        atol=1e-6,
    )


SIZES = {
    "hcformer_r50_coco_panoptic": (64, 96),
    "hcformer_plus_r50_coco_panoptic": (96, 64),
    "hcformer_plus_r50_standard_decoder_coco_panoptic": (64, 64),
    "hcformer_swin_s_coco_panoptic": (64, 96),
}


def assert_released_model_is_ours(name, size, swin_heads):
    state = random_state(released_keys()[name], seed=1)
    path, options = choose_config(find_architecture(shapes_of(state)))
    config = Config.fromfile(path)
    assert not options
    model = converted(state, config)
    assert_same(*both(model, state, image(size, 1), 8, swin_heads), **TOLERANCE)
    assert "standard" in name or parts_are_looked_at(model, image(size, 1))


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_released_models(name, size):
    """At their real widths, on a tiny image."""
    assert_released_model_is_ours(name, size, (3, 6, 12, 24))


@pytest.mark.slow
def test_released_swin_l():
    assert_released_model_is_ours("hcformer_plus_swin_l_coco_panoptic", (64, 96), (6, 12, 24, 48))


def swap(state_dict, ending, change):
    """Change the tensors whose names end so; there are some."""
    names = [name for name in state_dict if name.endswith(ending)]
    assert names
    for name in names:
        state_dict[name] = change(state_dict[name])


def rotated(packed):
    """Query, key, value in the order value, query, key."""
    return torch.cat([packed.chunk(3)[i] for i in (2, 0, 1)])


MISTAKES = {
    "patch merging": ("Swin-S", "downsample.reduction.weight", PATCH_MERGING.to_released),
    "query, key, value of windows": ("Swin-S", "w_msa.qkv.weight", rotated),
    "window bias": ("Swin-S", "relative_position_bias_table", lambda x: x.flip(0)),
    "query, key, value of the decoder": ("R50", "in_proj_weight", rotated),
    "bias of deformable convolutions": ("R50", "layer2.0.conv2.bias", torch.zeros_like),
    "offsets": ("R50", "conv_offset.bias", lambda x: x.roll(1)),
    "statistics": ("R50", "bn2.running_var", torch.ones_like),
    "scale": ("R50", "clusterings.0.scale", lambda x: 2 * x),
    "order of norms": ("R50", "norms.1.weight", torch.ones_like),
    "queries": ("R50", "query_embed.weight", lambda x: x.flip(0)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_would_show(mistake):
    """The comparison sees each of the tensors that a map of names may get wrong."""
    backbone, ending, change = MISTAKES[mistake]
    state, _, _, swin_heads = model = small(backbone)
    config = model.config
    ours = build(config)
    state_dict = convert(state, config).state_dict
    swap(state_dict, ending, change)
    ours.load_state_dict(state_dict)
    ours.eval()
    one, other = both(ours, state, image(), HEADS, swin_heads)
    pairs = zip((*one[:3], *one.assignments), (*other[:3], *other.assignments), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) > 50 * TOLERANCE["atol"]


@pytest.fixture(scope="module")
def resnet():
    model = small()
    return model.state, converted(model.state, model.config)


@pytest.fixture(scope="module")
def swin():
    model = small("Swin-S", plus=True)
    return model.state, converted(model.state, model.config)


def test_clustering_modules_are_in_order(resnet):
    """The released ResNet stores the coarsest first, ours the finest."""
    state, model = resnet
    for index, clustering in enumerate(model.backbone.clusterings):
        module = f"backbone.clustering_layers.{2 - index}"
        channels = 16 * 2**index
        fine, coarse = torch.randn(1, channels, 6, 10), torch.randn(1, 2 * channels, 3, 5)
        expected = released.cluster(state, module, fine, coarse)
        assignment = clustering(fine, coarse)
        torch.testing.assert_close(reference.to_matrix(assignment), expected)


@pytest.mark.parametrize("module", ["clustering", "encoder", "bn", "swin"])
def test_eps(module, resnet, swin):
    """On values so small that another eps gives another result."""
    torch.manual_seed(0)
    small_values = 1e-3 * torch.randn(1, 64, 6, 10)
    with torch.no_grad():
        if module == "clustering":
            state, model = resnet
            fine, coarse = small_values[:, :16], small_values[:, :32, ::2, ::2]
            ours = reference.to_matrix(model.backbone.clusterings[0](fine, coarse))
            name = "backbone.clustering_layers.2"
            theirs, other = (
                released.cluster(state, name, fine, coarse, eps) for eps in (1e-5, 1e-6)
            )
        elif module == "encoder":
            state, model = swin
            norm = model.neck.input_proj.gn
            ours = norm(small_values)
            weights = [state[f"backbone.aux.input_proj.1.{kind}"] for kind in ("weight", "bias")]
            theirs, other = (
                nn.functional.group_norm(small_values, 32, *weights, eps) for eps in (1e-5, 1e-6)
            )
        elif module == "bn":
            state = dict(resnet[0])
            state["backbone.layer1.0.bn1.running_var"] = torch.full((4,), 1e-5)
            norm = nn.BatchNorm2d(4).eval()
            norm.eps = resnet[1].backbone.backbone.layer1[0].bn1.eps
            prefix = "backbone.layer1.0.bn1"
            kinds = ("weight", "bias", "running_mean", "running_var")
            norm.load_state_dict({k: state[f"{prefix}.{k}"] for k in kinds}, strict=False)
            x = small_values[:, :4]
            ours = norm(x)
            theirs, other = (
                released.frozen_batch_norm(state, prefix, x, eps) for eps in (1e-5, 1e-3)
            )
        else:
            state, model = swin
            x = small_values[:, :16].movedim(1, -1)
            norm = model.backbone.backbone.stages[0].blocks[0].norm1
            ours = norm(x)
            weights = [state[f"backbone.layers.0.blocks.0.norm1.{k}"] for k in ("weight", "bias")]
            theirs, other = (
                nn.functional.layer_norm(x, (16,), *weights, eps) for eps in (1e-5, 1e-6)
            )
    torch.testing.assert_close(ours, theirs)
    assert (ours - other).abs().max() > 1e-2


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_blocks_with_frozen_statistics(stage, resnet):
    """Deformable ones with their biases, too; statistics stay as they are in training."""
    state, model = resnet
    block = getattr(model.backbone.backbone, f"layer{stage}")[0]
    x = torch.randn(2, block.conv1.in_channels, 8, 12)
    expected = released.bottleneck(state, f"backbone.layer{stage}.0", x, 1 if stage == 1 else 2)
    model.train()
    try:
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(
            block.bn1.running_mean, state[f"backbone.layer{stage}.0.bn1.running_mean"]
        )
        assert not block.bn1.num_batches_tracked
    finally:
        model.eval()


@pytest.mark.parametrize("size", [(6, 4), (5, 3), (1, 1)])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_patch_merging(stage, size, swin):
    state, model = swin
    merging = model.backbone.backbone.stages[stage].downsample
    tokens = torch.randn(2, size[0] * size[1], SWIN.channels[stage])
    name = f"backbone.layers.{stage}.downsample"
    expected = reference.patch_merging(
        tokens,
        size,
        state[f"{name}.norm.weight"],
        state[f"{name}.norm.bias"],
        state[f"{name}.reduction.weight"],
    )
    torch.testing.assert_close(merging(tokens, size)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 4), (7, 9), (3, 2), (1, 5)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows(shifted, size, swin):
    """Padding to whole windows, moved windows, their masks, the bias and the packing of heads."""
    state, model = swin
    attention = model.backbone.backbone.stages[1].blocks[int(shifted)].attn
    x = torch.randn(2, *size, 32)
    name = f"backbone.layers.1.blocks.{int(shifted)}.attn"
    expected = released.window_attention(state, name, x, SWIN.heads[1], shifted=shifted)
    ours = attention(x.flatten(1, 2), size).unflatten(1, size)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_relative_positions(swin):
    table = swin[1].backbone.backbone.stages[0].blocks[0].attn.w_msa.relative_position_index
    assert torch.equal(table, position_index(SWIN.window))


def test_attention_is_packed_alike(resnet):
    state, model = resnet
    attention = model.panoptic_head.transformer_decoder.layers[0].cross_attn.attn
    query, key, value = torch.randn(2, 5, 64), torch.randn(2, 7, 64), torch.randn(2, 7, 64)
    name = "sem_seg_head.predictor.transformer_cross_attention_layers.0.multihead_attn"
    expected = released.attention(state, name, query, key, value, HEADS)
    ours, _ = attention(*(x.transpose(0, 1) for x in (query, key, value)))
    torch.testing.assert_close(ours.transpose(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("semantic", [False, True])
def test_pixels(semantic):
    """An image as the hosts read it, blue first, becomes what the released model sees."""
    config = small(semantic=semantic).config
    with DefaultScope.overwrite_default_scope("mmseg" if semantic else "mmdet"):
        preprocessor = build(config).data_preprocessor
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(256, (50, 67, 3), generator=generator, dtype=torch.uint8)
    bgr = rgb.flip(-1).permute(2, 0, 1)
    sample = (SegDataSample if semantic else DetDataSample)(
        metainfo=dict(img_shape=(50, 67), ori_shape=(50, 67))
    )
    inputs = preprocessor(dict(inputs=[bgr], data_samples=[sample]))["inputs"]
    assert inputs.shape == (1, 3, 64, 96)
    torch.testing.assert_close(inputs, released.normalize(rgb), rtol=0, atol=1e-5)
