"""What holds for every chain of layers: equal results, and a way back."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hcformer_mm.acceleration.conv_bn_fusion import fuse_conv_bn, fuse_frozen_bn
from hcformer_mm.acceleration.inference import prepare_for_inference
from hcformer_mm.models.layers.deformable_downsampling import DeformableDownsampling
from tests.helpers.conv_bn import norms
from tests.helpers.strategies import SIZES


def layer(kind, channels, seed):
    """A layer of equal channels with random weights and statistics."""
    torch.manual_seed(seed)
    if kind == "norm":
        made = nn.BatchNorm2d(channels)
        for tensor in (made.weight, made.bias, made.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(made.running_var, 0.1, 2)
        return made
    if kind == "relu":
        return nn.ReLU()
    grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=seed % 2 == 0)
    made = nn.Conv2d(channels, channels, 1 + 2 * (seed % 2), padding=seed % 2, stride=1 + seed % 3)
    if kind == "deformable":
        made = DeformableDownsampling(made)
        nn.init.normal_(made.conv_offset.weight, std=0.1)
    return grouped if kind == "grouped" else made


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "grouped", "deformable", "norm", "norm", "relu"]),
            st.integers(0, 9),
        ),
        max_size=8,
    ),
    SIZES,
    st.sampled_from([fuse_conv_bn, fuse_frozen_bn, prepare_for_inference]),
)
def test_fusion_of_any_chain(chain, size, fuse):
    layers = [layer(kind, 3, seed) for kind, seed in chain]
    model = nn.Sequential(*layers).requires_grad_(fuse is not fuse_frozen_bn).eval()
    # The trace needs a parameter to find the device.
    model.append(nn.Conv2d(3, 3, 1))
    torch.manual_seed(0)
    image = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = model(image)
        undo = fuse(model)
        found = model(image)
        undo()
        again = model(image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again, expected, rtol=1e-5, atol=1e-5)
    assert list(model)[: len(layers)] == layers


@given(st.lists(st.sampled_from(["conv", "norm", "relu"]), max_size=8))
def test_norms_after_a_convolution_are_fused(chain):
    model = nn.Sequential(*(layer(kind, 3, 1) for kind in chain), nn.Conv2d(3, 3, 1)).eval()
    followed = sum(pair == ("conv", "norm") for pair in pairwise(chain))
    fuse_conv_bn(model)
    assert len(norms(model)) == chain.count("norm") - followed
    assert all(isinstance(module, _BatchNorm) for module in norms(model))
