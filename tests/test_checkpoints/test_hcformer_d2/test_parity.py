"""A converted model computes the same numbers as the released one from the same padded input."""

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
from tests.helpers.released_checkpoints import random_state, released_keys
from tests.helpers.released_small import HEADS, SWIN, small

TOLERANCE = dict(rtol=0, atol=1e-4)


def converted(state, config, state_dict=None):
    """Our model with the weights of a released one, in evaluation mode."""
    model = build(config)
    model.load_state_dict(state_dict or convert(state, config).state_dict)
    model.eval()  # some versions of mmdet return None here
    return model


def head_of(model):
    return model.panoptic_head if hasattr(model, "panoptic_head") else model.decode_head


@torch.no_grad()
def predict(model, image):
    """Outputs of our model, as the released one gives them."""
    features = model.extract_feat(image)
    classes, decoded = head_of(model)(features)
    _, masks = head_of(model).group(features[-1])
    return released.Prediction(classes[-1], masks[-1], decoded[-1], list(features.assignments))


def image(size=(64, 96), batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def both(model, state, image, swin_heads, heads=HEADS):
    """Pairs of our outputs and the released ones."""
    theirs = released.predict(state, image, num_heads=heads, swin_heads=swin_heads)
    ours = predict(model, image)
    flat = ((*outputs[:3], *outputs.assignments) for outputs in (ours, theirs))
    return list(zip(*flat, strict=True))


def assert_same(pairs, **tolerance):
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, **tolerance)
        assert theirs.std() > 1e-2  # constant outputs would agree as well


@torch.no_grad()
def attention_is_masked(model, image):
    """Whether some query attends to some cells, but not to all, in some layer."""
    _, masks = head_of(model).group(model.extract_feat(image)[-1])
    hidden = [logits.flatten(2) < 0 for logits in masks[:-1]]
    return any((mask.any(-1) & ~mask.all(-1)).any() for mask in hidden)


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
    assert_same(both(ours, state, image(), swin_heads), **TOLERANCE)
    assert case.get("standard") or attention_is_masked(ours, image())
    # In float64, only the position encoding is still rounded, as mmdet computes it in float32.
    double = {name: x.double() if x.is_floating_point() else x for name, x in state.items()}
    pairs = both(ours.double(), double, image((32, 96)).double(), swin_heads)
    assert_same(pairs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("hcformer_r50_coco_panoptic", (64, 96)),
        ("hcformer_plus_r50_coco_panoptic", (96, 64)),
        ("hcformer_plus_r50_standard_decoder_coco_panoptic", (64, 64)),
        ("hcformer_swin_s_coco_panoptic", (64, 96)),
        pytest.param("hcformer_plus_swin_l_coco_panoptic", (64, 96), marks=pytest.mark.slow),
    ],
)
def test_released_models(name, size):
    """The real widths, on a tiny image."""
    swin_heads = (6, 12, 24, 48) if "swin_l" in name else (3, 6, 12, 24)
    state = random_state(released_keys()[name], seed=1)
    path, options = choose_config(find_architecture(shapes_of(state)))
    assert not options
    model = converted(state, Config.fromfile(path))
    assert_same(both(model, state, image(size, 1), swin_heads, heads=8), **TOLERANCE)
    assert "standard" in name or attention_is_masked(model, image(size, 1))


def rotated(packed):
    """Pack query, key and value in the order value, query, key."""
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
    """The comparison sees every tensor that the rules might get wrong."""
    backbone, ending, change = MISTAKES[mistake]
    state, _, _, swin_heads = model = small(backbone)
    state_dict = convert(state, model.config).state_dict
    names = [name for name in state_dict if name.endswith(ending)]
    assert names
    state_dict.update({name: change(state_dict[name]) for name in names})
    pairs = both(converted(state, model.config, state_dict), state, image(), swin_heads)
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
    """The released ResNet stores the coarsest level first, ours the finest."""
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
    """Norms of values so small that another eps changes the result."""
    torch.manual_seed(0)
    x = 1e-3 * torch.randn(1, 64, 6, 10)
    state, model = resnet if module in ("clustering", "bn") else swin

    def weights(name, kinds=("weight", "bias")):
        return [state[f"{name}.{kind}"] for kind in kinds]

    with torch.no_grad():
        if module == "clustering":
            fine, coarse = x[:, :16], x[:, :32, ::2, ::2]
            ours = reference.to_matrix(model.backbone.clusterings[0](fine, coarse))

            def theirs(eps):
                name = "backbone.clustering_layers.2"
                return released.cluster(state, name, fine, coarse, eps)
        elif module == "encoder":
            ours = model.neck.input_proj.gn(x)
            parameters = weights("backbone.aux.input_proj.1")

            def theirs(eps):
                return nn.functional.group_norm(x, 32, *parameters, eps)
        elif module == "bn":
            name, x = "backbone.layer1.0.bn1", x[:, :4]
            state = {**state, f"{name}.running_var": torch.full((4,), 1e-5)}
            norm = nn.BatchNorm2d(4, eps=model.backbone.backbone.layer1[0].bn1.eps).eval()
            kinds = ("weight", "bias", "running_mean", "running_var")
            parameters = dict(zip(kinds, weights(name, kinds), strict=True))
            norm.load_state_dict(parameters, strict=False)
            ours = norm(x)

            def theirs(eps):
                return released.frozen_batch_norm(state, name, x, eps)
        else:
            x = x[:, :16].movedim(1, -1)
            ours = model.backbone.backbone.stages[0].blocks[0].norm1(x)
            parameters = weights("backbone.layers.0.blocks.0.norm1")

            def theirs(eps):
                return nn.functional.layer_norm(x, (16,), *parameters, eps)

        torch.testing.assert_close(ours, theirs(1e-5))
        assert (ours - theirs(1e-3 if module == "bn" else 1e-6)).abs().max() > 1e-2


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_blocks_with_frozen_statistics(stage, resnet):
    """Blocks, deformable ones with biases included, keep their statistics in training."""
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
    """Padding to whole windows, shifted windows, their masks, the bias and the packing of heads."""
    state, model = swin
    attention = model.backbone.backbone.stages[1].blocks[int(shifted)].attn
    x = torch.randn(2, *size, 32)
    name = f"backbone.layers.1.blocks.{int(shifted)}.attn"
    expected = released.window_attention(state, name, x, SWIN.heads[1], shifted=shifted)
    ours = attention(x.flatten(1, 2), size).unflatten(1, size)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("semantic", [False, True])
def test_pixels(semantic):
    """An image as mmdet and mmseg load it, blue first, becomes the released model's input."""
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
