import copy

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from hcformer_mm.models.backbones import taps as tapping
from tests.helpers.models import resnet


class Merging(nn.Module):
    """Halves a map by its mean; takes and yields a map or tokens."""

    def __init__(self, takes_tokens, yields_tokens):
        super().__init__()
        self.takes_tokens, self.yields_tokens = takes_tokens, yields_tokens

    def forward(self, x, size=None):
        if self.takes_tokens:
            x = x.transpose(1, 2).reshape(len(x), -1, *size)
        y = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
        return (y.flatten(2).transpose(1, 2), y.shape[-2:]) if self.yields_tokens else y


class Around(nn.Module):
    """A backbone of one module."""

    def __init__(self, merging, by_keyword=False):
        super().__init__()
        self.merging, self.by_keyword = merging, by_keyword

    def forward(self, x):
        if not self.merging.takes_tokens:
            return self.merging(x)
        tokens, size = x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
        return self.merging(x=tokens, size=size) if self.by_keyword else self.merging(tokens, size)


@pytest.mark.parametrize("takes_tokens", [False, True])
@pytest.mark.parametrize("yields_tokens", [False, True])
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
def test_maps_and_tokens_on_either_side(takes_tokens, yields_tokens, by_keyword, size):
    model = Around(Merging(takes_tokens, yields_tokens), by_keyword)
    tapping.attach(model, ["merging"])
    x = torch.randn(2, 3, *size, requires_grad=True)
    with tapping.recording() as captured:
        model(x)
    pair = captured["merging"]
    assert torch.equal(pair.fine, x)
    assert torch.equal(pair.coarse, nn.functional.avg_pool2d(x, 2, ceil_mode=True))
    assert pair.tokens == yields_tokens
    assert tapping.halves(pair)
    pair.coarse.sum().backward()
    assert x.grad.any()


class Returning(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        torch.zeros(1, 7, 3),
        (torch.zeros(1, 7, 3), (2, 4)),
        (torch.zeros(1, 8, 3), (2, 2, 2)),
        (torch.zeros(1, 8, 3), (torch.zeros(2, 4), 4)),
        (torch.zeros(1, 8, 3), "ab"),
        [torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 1, 2)],
        dict(x=torch.zeros(1, 3, 2, 4)),
    ],
    ids=["none", "empty", "tokens alone", "class token", "volume", "maps", "text", "maps of a "
    "backbone", "dict"],
)  # fmt: skip
def test_other_outputs_are_ignored(output):
    model = nn.Sequential(Returning(output))
    tapping.attach(model, ["0"])
    with tapping.recording() as captured:
        model(torch.zeros(1, 3, 4, 8))
    assert not captured


def test_half_of_a_pixel_is_no_halving():
    """Otherwise the squeezed maps of squeeze-and-excitation would be listed as candidates."""
    pixel, line = torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 2)
    assert not tapping.halves(tapping.Pair(pixel, pixel, False))
    assert tapping.halves(tapping.Pair(line, pixel, False))


def test_candidates_leave_pooling_out():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=8, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 4, 1),
    )
    assert tapping.halving_modules(model) == ["1", "2"]
    assert not any(module._forward_hooks for module in model.modules())


def test_description_without_halving_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert "a dry run found no module" in tapping.describe_halving_modules(model)


def test_dry_run_leaves_no_trace():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    frozen = dict(type="mmdet.SwinTransformer", embed_dims=16, depths=(1, 1, 1, 1))
    for config in (
        resnet(frozen_stages=1),
        # Freezes its parameters when train() is called, and not before.
        dict(frozen, num_heads=(1, 2, 4, 8), frozen_stages=2),
    ):
        bare = MODELS.build(config)
        if hasattr(bare, "layer1"):
            bare.layer1.eval()
        model = nn.Sequential(Noisy(), bare)
        modes = [module.training for module in model.modules()]
        trainable = [parameter.requires_grad for parameter in model.parameters()]
        state = copy.deepcopy(model.state_dict())
        random = torch.get_rng_state()
        tapping.dry_run(model)
        assert torch.equal(torch.get_rng_state(), random)
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == trainable
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


class Demanding(nn.Module):
    """Registers another convolution before its stem, and accepts some image sizes only."""

    def __init__(self, channels, accepted):
        super().__init__()
        self.head = nn.Conv2d(8, 16, 1)
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.accepted = accepted

    def forward(self, x):
        if not self.accepted(*x.shape[-2:]):
            raise AssertionError(f"no images of {tuple(x.shape[-2:])} here")
        return self.head(self.stem(x))


@pytest.mark.parametrize(
    "accepted",
    [lambda h, w: True, lambda h, w: h >= 100, lambda h, w: (h, w) == (224, 224)],
    ids=["any", "large", "fixed"],
)
def test_dry_run_finds_a_size(accepted):
    assert tapping.halving_modules(Demanding(3, accepted)) == ["stem"]


@pytest.mark.parametrize("channels", [1, 4])
def test_dry_run_reads_the_channels_of_the_stem(channels):
    assert tapping.halving_modules(nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1))) == ["0"]


def test_dry_run_without_convolutions():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.unfold, self.linear = nn.Unfold(2, stride=2), nn.Linear(12, 5)

        def forward(self, x):
            tokens = self.linear(self.unfold(x).transpose(1, 2))
            return tokens, (x.shape[2] // 2, x.shape[3] // 2)

    assert tapping.halving_modules(nn.Sequential(Linear().double())) == ["0"]


def test_dry_run_that_fails_says_why():
    model = Demanding(3, lambda h, w: False).train()
    with pytest.raises(ValueError, match=r"blank image .* no images of \(64, 96\) here"):
        tapping.dry_run(model)
    assert model.training and model.stem.training


def test_wrong_tap_is_named_where_the_dry_run_fails():
    class Refuses(nn.Module):
        def forward(self, x):
            raise RuntimeError("no images here")

    with pytest.raises(ValueError, match=r"got 'stage9'; the dry run .* failed: expected"):
        tapping.attach(Refuses(), ["stage9"])


@pytest.mark.parametrize("kind", ["BEiT-like", "plain"])
def test_unknown_families_have_no_default(kind):
    model = nn.Module()
    if kind == "BEiT-like":
        model.layers = nn.ModuleList([nn.Linear(2, 2)])
        model.stages = nn.ModuleList([nn.Linear(2, 2)])
    assert tapping.default_taps(model) is None
