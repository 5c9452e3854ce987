from copy import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from hcformer_mm.models.layers.attention import FusedAttention, fuse_attention
from tests.helpers import reference
from tests.helpers.devices import on_each_device


def pair(width=24, heads=4, dropout=0.0, dtype=torch.float64):
    """An attention of mmcv, and a fused one that shares its random weights."""
    torch.manual_seed(0)
    drop = dict(type="Dropout", drop_prob=dropout)
    plain = MultiheadAttention(width, heads, dropout, dropout_layer=drop, batch_first=True)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=width**-0.5)
    plain.to(dtype)
    fused = copy(plain)
    fuse_attention(nn.ModuleList([fused]))
    return plain, fused


@on_each_device
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "queries", "keys"), [(2, 5, 7), (1, 1, 1), (3, 4, 4), (1, 9, 2)])
def test_cross_attention_is_mmcvs(batch, queries, keys, masked):
    plain, fused = pair()
    sizes = (queries, queries, keys, keys, keys)
    inputs = [
        torch.randn(batch, size, 24, dtype=torch.float64, requires_grad=True) for size in sizes
    ]
    query, query_pos, key, key_pos, value = inputs
    mask = (torch.rand(batch, queries, keys) < 0.5) & (torch.arange(keys) > 0) if masked else None
    expected = plain(
        query,
        key,
        value,
        query_pos=query_pos,
        key_pos=key_pos,
        attn_mask=mask.repeat_interleave(4, dim=0) if masked else None,
    )
    added = None if mask is None else (~mask).to(query.dtype).log()[:, None]
    given = dict(query_pos=query_pos, attn_mask=added)
    computed = fused(query, key, value, key_pos=key_pos, **given)
    torch.testing.assert_close(fused(query, key + key_pos, value, **given), computed)
    inputs = [*inputs, *plain.parameters()]
    reference.assert_same_with_gradients(computed, expected, inputs, 1e-12, 1e-10, 1e-12)


@on_each_device
@pytest.mark.parametrize(("batch", "queries"), [(2, 5), (1, 1), (1, 8)])
def test_self_attention_is_mmcvs(batch, queries):
    plain, fused = pair()
    x, position = (
        torch.randn(batch, queries, 24, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    expected, computed = (
        attention(x, x, x, query_pos=position, key_pos=position) for attention in (plain, fused)
    )
    inputs = [x, position, *plain.parameters()]
    reference.assert_same_with_gradients(computed, expected, inputs, 1e-12, 1e-10, 1e-12)


def test_drops_weights_and_outputs_in_training_alone():
    _, fused = pair(dropout=0.5, dtype=torch.float32)
    x = torch.ones(1, 400, 24)
    position = torch.zeros_like(x)

    def attended():
        return fused(x, x, x, query_pos=position, key_pos=position) - x

    kept = fused.eval()(x, x, x, query_pos=position, key_pos=position) - x
    assert torch.equal(kept, attended())
    torch.manual_seed(0)
    dropped = fused.train()(x, x, x, query_pos=position, key_pos=position) - x
    assert 0.4 < (dropped == 0).float().mean() < 0.6  # outputs, the others twice as large
    fused.dropout_layer.p = 0.0
    # Weights: equal values are averaged, so that the mean stays and the queries differ.
    outputs = attended()
    assert outputs.std(dim=1).min() > 0
    torch.testing.assert_close(outputs.mean(dim=1), kept.mean(dim=1), rtol=0.02, atol=0.02)


def test_names_and_hooks_stay():
    plain, _ = pair()
    names = list(plain.state_dict())
    calls = []
    plain.register_forward_hook(lambda *_: calls.append(1))
    model = nn.ModuleDict({"inner": nn.Sequential(plain)})
    fuse_attention(model)
    assert type(plain) is FusedAttention and isinstance(plain, MultiheadAttention)
    assert list(plain.state_dict()) == names
    x = torch.zeros(1, 2, 24, dtype=torch.float64)
    plain(x, x, x, query_pos=x, key_pos=x)
    assert calls == [1]


@pytest.mark.parametrize(
    "option", [dict(bias=False), dict(add_bias_kv=True), dict(add_zero_attn=True), dict(kdim=8)]
)
def test_options_that_would_be_lost_are_refused(option):
    with pytest.raises(ValueError, match="expected '1' to have no options beside"):
        fuse_attention(nn.Sequential(nn.Identity(), MultiheadAttention(24, 4, **option)))
