import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from hcformer_mm.structures.clustered_features import ClusteredFeatures
from tests.helpers import reference
from tests.helpers.devices import on_each_device
from tests.helpers.models import detector
from tests.test_models.test_heads.test_hcformer_head import check_xavier_uniform, randomize

ENCODER = Config.fromfile("configs/_base_/models/parts/encoder.py").hc_encoder


def neck_config(in_channels, width=256, layers=6):
    """The neck of HCFormer+, of another width and depth."""
    config = ENCODER.copy()
    attention = {**config.encoder.layer_cfg.self_attn_cfg, "embed_dims": width}
    ffn = {
        **config.encoder.layer_cfg.ffn_cfg,
        "embed_dims": width,
        "feedforward_channels": 2 * width,
    }
    return {
        **config,
        "in_channels": in_channels,
        "out_channels": width,
        "encoder": dict(num_layers=layers, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
        "positional_encoding": dict(num_feats=width // 2, normalize=True),
    }


def features(channels, *sizes, dtype=torch.float64):
    maps = [torch.randn(2, channels, *size, dtype=dtype) for size in sizes]
    assignments = [torch.rand(2, 9, *size, dtype=dtype) for size in sizes[:-1]]
    return ClusteredFeatures(
        maps, assignments=assignments, scales=[torch.ones(1)] * len(assignments)
    )


@on_each_device
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (7, 2)])
def test_equals_the_formula(size):
    """Convolution, group normalization and two layers in float64, outputs and all gradients."""
    torch.manual_seed(0)
    neck = MODELS.build(neck_config(48, 64, 2)).double().eval()
    randomize(neck)
    feature_map = torch.randn(2, 48, *size, dtype=torch.float64, requires_grad=True)
    x = ClusteredFeatures([feature_map], assignments=[], scales=[])

    conv, norm = neck.input_proj.conv, neck.input_proj.gn
    cells = torch.einsum("bchw,dc->bdhw", feature_map, conv.weight.flatten(1))
    cells = (cells + conv.bias.view(-1, 1, 1)).unflatten(1, (32, -1))
    centered = cells - cells.mean(dim=(2, 3, 4), keepdim=True)
    variance = (centered**2).mean(dim=(2, 3, 4), keepdim=True)
    cells = (centered / (variance + norm.eps).sqrt()).flatten(1, 2)
    cells = cells * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    expected = cells.flatten(2).transpose(1, 2)
    position = neck.positional_encoding(feature_map).double()
    for layer in neck.encoder.layers:
        expected = reference.encoder_layer(layer, expected, position)
    expected = expected.transpose(1, 2).unflatten(2, size)

    inputs = [feature_map, *neck.parameters()]
    reference.assert_same_with_gradients(neck(x)[-1], expected, inputs, 1e-9, 1e-7, 1e-9)


@on_each_device
def test_equals_the_encoder_of_torch():
    """Without positions, torch's own layers with the same weights give the same output."""
    torch.manual_seed(0)
    neck = MODELS.build(neck_config(64, 64, 2)).double().eval()
    randomize(neck)
    x = torch.randn(2, 15, 64, dtype=torch.float64)
    expected = x
    for layer in neck.encoder.layers:
        twin = nn.TransformerEncoderLayer(64, 8, 128, batch_first=True, dtype=torch.float64).eval()
        linear = [module for module in layer.ffn.modules() if isinstance(module, nn.Linear)]
        parts = (layer.self_attn.attn, *linear, *layer.norms)
        theirs = (twin.self_attn, twin.linear1, twin.linear2, twin.norm1, twin.norm2)
        for mine, other in zip(parts, theirs, strict=True):
            other.load_state_dict(mine.state_dict())
        expected = twin(expected)
    encoded = neck.encoder(query=x, query_pos=torch.zeros_like(x), key_padding_mask=None)
    torch.testing.assert_close(encoded, expected, rtol=1e-9, atol=1e-9)


@on_each_device
def test_only_the_last_map_changes():
    x = features(48, (12, 20), (6, 10), (3, 5))
    neck = MODELS.build(neck_config(48, 64, 1)).double()
    encoded = neck(x)
    assert isinstance(encoded, ClusteredFeatures)
    assert encoded.assignments == x.assignments
    assert encoded.scales == x.scales
    assert encoded[0] is x[0] and encoded[1] is x[1]
    assert encoded[2].shape == (2, 64, 3, 5)


def test_drops_in_training_alone():
    """Dropout of 0.1 in attention, after it and in the FFN; none in the decoder."""
    neck = neck_config(512, 128, 2)
    model = detector(**{"neck": neck, "panoptic_head.in_channels": 128}).train()
    for module, rate in ((model.neck, 0.1), (model.panoptic_head, 0.0)):
        for part in module.modules():
            if isinstance(part, MultiheadAttention):
                assert part.attn.dropout == part.dropout_layer.p == rate
            if isinstance(part, FFN):
                assert {m.p for m in part.modules() if isinstance(m, nn.Dropout)} == {rate}
    x = features(512, (2, 3), dtype=torch.float32)
    assert not torch.equal(model.neck(x)[-1], model.neck(x)[-1])
    model.neck.eval()
    assert torch.equal(model.neck(x)[-1], model.neck(x)[-1])


def test_initialization():
    torch.manual_seed(0)
    neck = MODELS.build({**ENCODER, "in_channels": 64})
    neck.init_weights()
    check_xavier_uniform(neck.encoder)
    check_xavier_uniform(neck.input_proj.conv)
    bias, bound = neck.input_proj.conv.bias.abs(), 64**-0.5  # PyTorch's default
    assert 0.9 * bound < bias.max() <= bound


def test_bad_input():
    neck = MODELS.build(neck_config(48, 64, 1)).double()
    with pytest.raises(TypeError, match="expected ClusteredFeatures"):
        neck((torch.randn(1, 48, 2, 2),))
    with pytest.raises(ValueError, match=r"in_channels=48, got \(2, 32, 3, 5\)"):
        neck(features(32, (3, 5)))
    with pytest.raises(ValueError, match=r"equal to out_channels=256, got \(64, 64\)"):
        MODELS.build({**neck_config(48, 64, 1), "out_channels": 256})


def test_weights_of_a_checkpoint_stay(tmp_path):
    config = neck_config(64, 64, 1)
    stored = MODELS.build(config)
    for parameter in stored.parameters():
        nn.init.constant_(parameter, 0.5)
    path = tmp_path / "neck.pth"
    torch.save(stored.state_dict(), path)
    neck = MODELS.build({**config, "init_cfg": dict(type="Pretrained", checkpoint=str(path))})
    neck.init_weights()
    assert all((parameter == 0.5).all() for parameter in neck.parameters())
