"""The modules that replace those of PyTorch, mmdet and mmseg in an export."""

import mmdet.models.backbones.swin as mmdet_swin
import mmseg.models.backbones.swin as mmseg_swin
import pytest
import torch
from torch import nn

from hcformer_mm.deployment.rewriters import AveragePool, WindowAttention, rewrite_modules

SIZES = [(1, 1), (1, 9), (7, 7), (3, 2), (14, 7), (15, 22), (8, 29)]
DYNAMIC = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}


@pytest.mark.parametrize("parts", [1, 2, 3, 6, (2, 5), (None, 3)])
@pytest.mark.parametrize("size", SIZES)
def test_average_pool_equals_the_original(parts, size):
    pool = nn.AdaptiveAvgPool2d(parts)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(pool)(x), pool(x))


def attention(module, *, shift):
    torch.manual_seed(0)
    original = module.ShiftWindowMSA(
        embed_dims=12, num_heads=3, window_size=7, shift_size=3 if shift else 0
    )
    original.init_weights()
    nn.init.normal_(original.w_msa.relative_position_bias_table)
    return original.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("module", [mmdet_swin, mmseg_swin])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_window_attention_equals_the_original(module, shift, size):
    original = attention(module, shift=shift)
    tokens = torch.randn(2, size[0] * size[1], 12, dtype=torch.float64)
    torch.testing.assert_close(WindowAttention(original)(tokens, size), original(tokens, size))


def test_exported_pool_accepts_other_sizes():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3))
    image, shapes = torch.zeros(1, 2, 10, 13), (DYNAMIC,)
    rewritten = rewrite_modules(model)
    exported = torch.export.export(rewritten, (image,), dynamic_shapes=shapes, strict=False)
    for size in ((2, 3), (12, 12), (31, 7)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(exported.module()(x), model(x))


def test_rewriting_copies_the_model():
    pools = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU())
    model = nn.ModuleDict(
        dict(pools=pools, blocks=nn.Sequential(attention(mmdet_swin, shift=True)))
    )
    copy = rewrite_modules(model)
    assert isinstance(copy["pools"][0], AveragePool)
    assert isinstance(copy["blocks"][0], WindowAttention)
    assert type(model["pools"][0]) is nn.AdaptiveAvgPool2d
    assert type(model["blocks"][0]) is mmdet_swin.ShiftWindowMSA
    before, after = (set(p.data_ptr() for p in m.parameters()) for m in (model, copy))
    assert not before & after
    assert len(before) == len(after)
