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
from hcformer_mm.checkpoints.hcformer_d2.convert import shapes_of
from hcformer_mm.checkpoints.hcformer_d2.key_mapping import PATCH_MERGING
from hcformer_mm.utils.config import build_without_weights
from tests.helpers import reference
from tests.helpers import released_model as released
from tests.helpers.released_checkpoints import random_state, released_keys
from tests.helpers.released_small import HEADS, small

TOLERANCE = dict(rtol=0, atol=1e-4)


def converted(state, config, state_dict=None):
    """Our model with the weights of a released one, in evaluation mode."""
    model = build_without_weights(config)
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


@torch.no_grad()
def test_eps_of_clustering():
    """Maps so small that another eps of the norms changes the assignment."""
    model = small()
    torch.manual_seed(0)
    x = 1e-3 * torch.randn(1, 32, 6, 10)
    fine, coarse = x[:, :16], x[..., ::2, ::2]
    ours = converted(model.state, model.config).backbone.clusterings[0](fine, coarse)
    theirs, others = (
        released.cluster(model.state, "backbone.clustering_layers.2", fine, coarse, eps)
        for eps in (1e-5, 1e-6)
    )
    torch.testing.assert_close(reference.to_matrix(ours), theirs)
    assert (theirs - others).abs().max() > 1e-2


@torch.no_grad()
def test_statistics_stay_frozen_in_training():
    small_model = small()
    model = converted(small_model.state, small_model.config)
    expected = model.extract_feat(image())
    model.train()
    for ours, other in zip(model.extract_feat(image()), expected, strict=True):
        torch.testing.assert_close(ours, other)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(norm.num_batches_tracked for norm in norms)


@pytest.mark.parametrize("semantic", [False, True])
def test_pixels(semantic):
    """An image as mmdet and mmseg load it, blue first, becomes the released model's input."""
    config = small(semantic=semantic).config
    with DefaultScope.overwrite_default_scope("mmseg" if semantic else "mmdet"):
        preprocessor = build_without_weights(config).data_preprocessor
    generator = torch.Generator().manual_seed(0)
    rgb = torch.randint(256, (50, 67, 3), generator=generator, dtype=torch.uint8)
    bgr = rgb.flip(-1).permute(2, 0, 1)
    sample = (SegDataSample if semantic else DetDataSample)(
        metainfo=dict(img_shape=(50, 67), ori_shape=(50, 67))
    )
    inputs = preprocessor(dict(inputs=[bgr], data_samples=[sample]))["inputs"]
    assert inputs.shape == (1, 3, 64, 96)
    torch.testing.assert_close(inputs, released.normalize(rgb), rtol=0, atol=1e-5)
