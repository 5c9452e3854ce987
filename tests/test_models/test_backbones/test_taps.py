import ast
import copy

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from hcformer_mm.models.backbones import taps as tapping
from tests.helpers.models import resnet


class Merging(nn.Module):
    """Halves a map by its mean; takes and yields a map or tokens."""

    def __init__(self, takes_tokens=False, yields_tokens=False, channels_last=False):
        super().__init__()
        self.takes_tokens, self.yields_tokens = takes_tokens, yields_tokens
        self.channels_last = channels_last

    def forward(self, x, size=None):
        if self.takes_tokens:
            x = x.transpose(1, 2).reshape(len(x), -1, *size)
        if self.channels_last:
            x = x.movedim(-1, 1)
        y = nn.functional.avg_pool2d(x, 2, ceil_mode=True)
        if self.channels_last:
            return y.movedim(1, -1)
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
    tapping.attach(model, {"merging": tapping.ChannelsLast()})
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
    tapping.attach(model, {"0": tapping.ChannelsLast()})
    with tapping.recording() as captured:
        model(torch.zeros(1, 3, 4, 8))
    assert not captured


def test_half_of_a_pixel_is_no_halving():
    """Otherwise the squeezed maps of squeeze-and-excitation would be listed as candidates."""
    pixel, line = torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 2)
    assert not tapping.halves(tapping.Pair(pixel, pixel, False))
    assert tapping.halves(tapping.Pair(line, pixel, False))


def halving_modules(model):
    text = tapping.dry_run(model).describe_halving_modules()
    return ast.literal_eval(text.partition("dry run: ")[2] or "[]")


def test_candidates_leave_pooling_out():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=8, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(4, 4, 1),
    )
    assert halving_modules(model) == ["1", "2"]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_description_without_halving_modules():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert "a dry run found no module" in tapping.dry_run(model).describe_halving_modules()


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
    assert halving_modules(Demanding(3, accepted)) == ["stem"]


@pytest.mark.parametrize("channels", [1, 4])
def test_dry_run_reads_the_channels_of_the_stem(channels):
    assert halving_modules(nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1))) == ["0"]


def test_dry_run_without_convolutions():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.unfold, self.linear = nn.Unfold(2, stride=2), nn.Linear(12, 5)

        def forward(self, x):
            tokens = self.linear(self.unfold(x).transpose(1, 2))
            return tokens, (x.shape[2] // 2, x.shape[3] // 2)

    assert halving_modules(nn.Sequential(Linear().double())) == ["0"]


def test_dry_run_that_fails_says_why():
    model = Demanding(3, lambda h, w: False).train()
    with pytest.raises(ValueError, match=r"blank image .* no images of \(64, 96\) here"):
        tapping.dry_run(model)
    assert model.training and model.stem.training


class Returns(nn.Sequential):
    """Returns the maps of its children ``outs``."""

    def __init__(self, outs, *modules):
        super().__init__(*modules)
        self.outs = outs

    def forward(self, x):
        maps = []
        for module in self:
            x = module(x)
            maps.append(x)
        return tuple(maps[i] for i in self.outs)


class Residual(nn.Module):
    """A block, with a projection where it halves the map."""

    def __init__(self, channels, out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.conv2(self.conv1(x).relu_()).add_(self.shortcut(x)).relu_()


class Inverted(nn.Sequential):
    """A block without shortcut."""

    def __init__(self, channels, out):
        super().__init__(
            nn.Conv2d(channels, 6 * channels, 1),
            nn.Conv2d(6 * channels, 6 * channels, 3, 2, padding=1, groups=6 * channels),
            nn.Conv2d(6 * channels, out, 1),
        )


def stem():
    return nn.Conv2d(3, 4, 7, 4, padding=3)


def merging(channels, out):
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 2, 2))


@pytest.mark.parametrize(
    ("modules", "taps"),
    [
        ([nn.Sequential(Residual(4, 6, 2), Residual(6, 6))], ["1.0"]),
        ([nn.Sequential(Residual(4, 6, 2))], ["1.0"]),
        ([nn.Sequential(Inverted(4, 6), Residual(6, 6))], ["1.0"]),
        ([Inverted(4, 6)], ["1"]),
        ([nn.Sequential(merging(4, 6), Residual(6, 6), Residual(6, 6))], ["1.0"]),
        ([nn.Sequential(Residual(4, 4), Residual(4, 4), merging(4, 6))], ["1.2"]),
        ([nn.Sequential(nn.MaxPool2d(2), Residual(4, 4), Residual(4, 4))], ["1.0"]),
        ([nn.MaxPool2d(2), Residual(4, 4)], ["1"]),
        ([nn.Sequential(Residual(4, 6, 2), nn.Sequential(Residual(6, 8, 2)))], ["1.0", "1.1.0"]),
    ],
    ids=["stage", "lone block", "without shortcut", "flat", "merging first", "merging last",
         "pooling in a stage", "flat pooling", "two halvings"],
)  # fmt: skip
def test_taps_are_found(modules, taps):
    model = Returns([len(modules)], stem(), *modules)
    assert tapping.dry_run(model).find_taps() == taps


def test_taps_start_after_the_stem_unless_a_finer_map_is_returned():
    blocks = [Residual(3, 4, 2), Residual(4, 4, 2), Residual(4, 4, 2), Residual(4, 4, 2)]
    assert tapping.dry_run(Returns([3], *blocks)).find_taps() == ["2", "3"]
    assert tapping.dry_run(Returns([0, 3], *blocks)).find_taps() == ["1", "2", "3"]
    # Only halvings down to the deepest map that is returned.
    assert tapping.dry_run(Returns([2], *blocks)).find_taps() == ["2"]


def test_taps_above_a_gap_are_dropped():
    blocks = [Residual(4, 4, 2), nn.Conv2d(4, 4, 5, 4, padding=2), Residual(4, 4, 2)]
    assert tapping.dry_run(Returns([3], stem(), *blocks)).find_taps() == ["3"]


def test_parallel_branches_tap_the_first():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.transition = stem(), merging(4, 6)
            self.high, self.fuse = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 3, 2, padding=1)

        def forward(self, x):
            x = self.stem(x)
            return self.transition(x) + self.fuse(self.high(x))

    assert tapping.dry_run(Parallel()).find_taps() == ["transition"]


def test_backbones_that_return_no_maps_have_no_taps():
    model = nn.Sequential(stem(), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert tapping.dry_run(model).find_taps() == []


@pytest.mark.parametrize("size", [(64, 64), (66, 31)])
def test_channels_last(size):
    """Maps of any size, though they are told apart on the image of the dry run."""
    torch.manual_seed(0)

    class Permuted(Returns):
        def forward(self, x):
            fine = self[0](x).movedim(1, -1)
            return fine, self[1](fine)

    model = Permuted([], stem(), Merging(channels_last=True))
    run = tapping.dry_run(model)
    assert run.channels_last == [True, True] and run.find_taps() == ["1"]
    tapping.attach(model, {"1": run.calls["1"].channels_last})
    x = torch.randn(2, 3, *size)
    with tapping.recording() as captured:
        fine, coarse = model(x)
    assert torch.equal(captured["1"].fine, fine.movedim(-1, 1))
    assert torch.equal(captured["1"].coarse, coarse.movedim(-1, 1))
