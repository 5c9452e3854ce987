"""The hosts' modules and the forms of them that are exported."""

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
def test_average_pool_is_the_hosts(parts, size):
    pool = nn.AdaptiveAvgPool2d(parts)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(AveragePool(pool)(x), pool(x))


def attention(module, *, shift, window=7):
    torch.manual_seed(0)
    host = module.ShiftWindowMSA(
        embed_dims=12, num_heads=3, window_size=window, shift_size=3 if shift else 0
    )
    host.init_weights()
    nn.init.normal_(host.w_msa.relative_position_bias_table)
    return host.double().eval()


@pytest.mark.parametrize("module", [mmdet_swin, mmseg_swin])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_window_attention_is_the_hosts(module, shift, size):
    host = attention(module, shift=shift)
    tokens = torch.randn(2, size[0] * size[1], 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(WindowAttention(host)(tokens, size), host(tokens, size))


def test_masked_tokens_matter():
    """Without its mask, the shifted attention is another one: the test above sees the mask."""
    host = attention(mmdet_swin, shift=True)
    ours = WindowAttention(host)
    ours._mask = lambda *args: None
    tokens = torch.randn(1, 14 * 14, 12, dtype=torch.float64)
    with torch.no_grad():
        assert (ours(tokens, (14, 14)) - host(tokens, (14, 14))).abs().max() > 1e-2


def test_pools_are_exported_for_other_sizes():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(3))
    exported = torch.export.export(
        rewrite_modules(model),
        (torch.zeros(1, 2, 10, 13),),
        dynamic_shapes=(DYNAMIC,),
        strict=False,
    ).module()
    for size in ((2, 3), (12, 12), (31, 7)):
        x = torch.randn(1, 2, *size)
        torch.testing.assert_close(exported(x), model(x))


def test_portable_copies():
    model = nn.ModuleDict(
        {
            "pools": nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.ReLU()),
            "block": nn.Sequential(attention(mmdet_swin, shift=True)),
        }
    )
    copy = rewrite_modules(model)
    assert isinstance(copy["pools"][0], AveragePool)
    assert isinstance(copy["block"][0], WindowAttention)
    assert type(model["pools"][0]) is nn.AdaptiveAvgPool2d
    assert type(model["block"][0]) is mmdet_swin.ShiftWindowMSA
    theirs, ours = (set(p.data_ptr() for p in m.parameters()) for m in (model, copy))
    assert not theirs & ours
    assert len(theirs) == len(ours)
