"""The operators that this package brings, beside what does the same without it, on random maps."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import mmcv.ops
import torch
import torchvision.ops
from mmdet.models.backbones import ResNet
from mmdet.models.seg_heads import MaskFormerFusionHead
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models import confident_class_logits
from hcformer_mm.models.heads import HCFormerFusionHead
from hcformer_mm.models.layers.clustering import ClusteringModule
from hcformer_mm.models.layers.deformable_downsampling import (
    DeformableDownsampling,
    make_downsampling_deformable,
)
from hcformer_mm.ops import decode
from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from hcformer_mm.ops.neighborhood import NUM_CANDIDATES, coarse_size

Operator = Literal["clustering", "decoding", "deform", "post-processing"]
Pass = Literal["forward", "forward+backward"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
PASSES: tuple[Pass, ...] = get_args(Pass)

RESNET50_CHANNELS = {4: 256, 8: 512, 16: 1024}
"""Channels of the maps that a ResNet-50 downsamples, by stride; there are twice as many after."""

_LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


@dataclass(frozen=True)
class Case:
    """Things that compute the same, to be timed side by side.

    Attributes:
        setting: What is computed.
        calls: Functions by name; the first is the baseline. The name says in which memory the maps
            are given.
    """

    setting: Mapping[str, str | int]
    calls: Mapping[str, Callable[[], object]]


def operator_cases(
    operator: Operator,
    shape: tuple[int, int],
    *,
    listings: ModuleType,
    passes: Sequence[Pass] = PASSES,
    strides: Sequence[int] = tuple(RESNET50_CHANNELS),
    channels: Sequence[int] = (20, 100, 1000),
    queries: int = 100,
    compiled: bool = False,
    seed: int = 0,
) -> Iterator[Case]:
    """What is timed of an operator, one case after the other.

    - ``'clustering'``: norms, projections and assignment (eq. (3)) of one level of a ResNet-50;
      the gradients are those of both maps and of the parameters.
    - ``'decoding'``: eq. (5) for one level, with gradients of masks and assignment.
    - ``'deform'``: DCNv2 in the six layers of a ResNet-50 that downsample, of offsets that are
      given; plain convolutions with the same weights show the scale.
    - ``'post-processing'``: panoptic segmentation from class and mask logits, of queries that all
      are kept and all win their place; always forward alone.

    Args:
        operator: Which of them.
        shape: Height and width of the image, multiples of 32.
        listings: Module with the listings of the paper; see :func:`load_listings`.
        passes: What is timed.
        strides: At which maps; keys of :data:`RESNET50_CHANNELS`.
        channels: Numbers of masks that are decoded.
        queries: Number of queries that are kept in post-processing.
        compiled: Whether ours is timed under ``torch.compile`` too, where it has tensors alone.
        seed: Seed of the maps.

    Yields:
        Cases. The maps of one are freed when the next is asked for, unless the caller holds them.

    Raises:
        ValueError: The shape is no pair of multiples of 32.
    """
    if any(side < 32 or side % 32 for side in shape):
        raise ValueError(f"expected a shape (H, W) of multiples of 32, got {shape}")
    torch.manual_seed(seed)
    setting: dict[str, str | int] = dict(operator=operator, shape=f"{shape[0]}x{shape[1]}")
    if operator == "clustering":
        for stride in strides:
            for one in passes:
                named = setting | {"stride": stride, "channels": "-", "pass": one}
                yield Case(named, _clustering(shape, stride, one, listings, compiled))
    elif operator == "decoding":
        for stride in strides:
            for number in channels:
                for one in passes:
                    named = setting | {"stride": stride, "channels": number, "pass": one}
                    yield Case(named, _decoding(shape, stride, number, one, listings, compiled))
    elif operator == "deform":
        for one in passes:
            named = setting | {"stride": "4, 8, 16", "channels": "-", "pass": one}
            yield Case(named, _deform(shape, one, compiled))
    else:
        named = setting | {"stride": 1, "channels": queries, "pass": "forward"}
        yield Case(named, _post_processing(shape, queries))


def load_listings(path: Path) -> ModuleType:
    """The module with the listings of the paper, from the tests of a clone.

    Args:
        path: ``tests/helpers/reference.py``.

    Raises:
        ValueError: There is no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"expected the listings of the paper in {path}, found no such file; run the tool "
            "where it lies in a clone of the repository, as the tests are not installed"
        )
    spec = importlib.util.spec_from_file_location("listings", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _clustering(
    shape: tuple[int, int], stride: int, one: Pass, listings: ModuleType, compiled: bool
) -> dict[str, Callable[[], object]]:
    channels = RESNET50_CHANNELS[stride]
    module = ClusteringModule(channels, 2 * channels)
    size = shape[0] // stride, shape[1] // stride
    maps = torch.randn(1, channels, *size), torch.randn(1, 2 * channels, *coarse_size(*size))
    listing = partial(listings.listing_module, module)
    return _in_layouts(listing, module, maps, list(module.parameters()), one, compiled)


def _decoding(
    shape: tuple[int, int],
    stride: int,
    channels: int,
    one: Pass,
    listings: ModuleType,
    compiled: bool,
) -> dict[str, Callable[[], object]]:
    size = shape[0] // stride, shape[1] // stride
    masks = torch.randn(1, channels, *coarse_size(*size))
    assignment = torch.randn(1, NUM_CANDIDATES, *size).softmax(dim=1)
    return _in_layouts(listings.listing_decode, decode, (masks, assignment), [], one, compiled)


def _in_layouts(
    listing: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    maps: tuple[Tensor, ...],
    parameters: list[Tensor],
    one: Pass,
    compiled: bool,
) -> dict[str, Callable[[], object]]:
    """Both in both layouts, as each of them has one that suits it."""
    calls = _Calls(maps, parameters, one)
    for name, function in (("listing", listing), ("ours", ours)):
        for layout in _LAYOUTS:
            calls.add(name, layout, function)
    if compiled:
        calls.add("ours compiled", "channels-last", _compile(ours))
    return calls.by_name


def _deform(shape: tuple[int, int], one: Pass, compiled: bool) -> dict[str, Callable[[], object]]:
    layers: list[DeformableDownsampling] = []
    maps: list[Tensor] = []
    network = ResNet(depth=50)
    for stride, stage in zip(RESNET50_CHANNELS, network.res_layers[1:], strict=True):
        block = getattr(network, stage)[0]
        size = shape[0] // stride, shape[1] // stride
        for name in make_downsampling_deformable(block):
            layer = block.get_submodule(name)
            taps = layer.kernel_size[0] ** 2
            offset = torch.randn(1, 2 * taps, *coarse_size(*size))  # about a pixel
            mask = torch.rand(1, taps, *coarse_size(*size))
            maps += [torch.randn(1, layer.in_channels, *size), offset, mask]
            layers.append(layer)

    def all_layers(convolve: Callable[..., Tensor]) -> Callable[..., list[Tensor]]:
        def run(*maps: Tensor) -> list[Tensor]:
            return [convolve(layer, *maps[3 * i : 3 * i + 3]) for i, layer in enumerate(layers)]

        return run

    calls = _Calls(maps, [p for layer in layers for p in (layer.weight, layer.bias)], one)
    # mmcv's operator reads any memory as contiguous, and torchvision's copies other memory.
    calls.add("mmcv", "contiguous", all_layers(_mmcv_deform))
    calls.add("torchvision", "contiguous", all_layers(_torchvision_deform))
    for layout in _LAYOUTS:
        calls.add("ours", layout, all_layers(_our_deform))
    if compiled:
        calls.add("ours compiled", "channels-last", _compile(all_layers(_our_deform)))
    for layout in _LAYOUTS:
        calls.add("plain convolutions", layout, all_layers(_plain))
    return calls.by_name


def _mmcv_deform(layer: DeformableDownsampling, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    groups = layer.dilation, layer.groups, layer.deform_groups
    weights = layer.weight, layer.bias
    return mmcv.ops.modulated_deform_conv2d(
        x, offset, mask, *weights, layer.stride, layer.padding, *groups
    )


def _torchvision_deform(
    layer: DeformableDownsampling, x: Tensor, offset: Tensor, mask: Tensor
) -> Tensor:
    strides = dict(stride=layer.stride, padding=layer.padding)
    return torchvision.ops.deform_conv2d(x, offset, layer.weight, layer.bias, mask=mask, **strides)


def _our_deform(layer: DeformableDownsampling, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    strides = dict(stride=layer.stride[0], padding=layer.padding[0])
    return modulated_deform_conv2d(x, offset, mask, layer.weight, layer.bias, **strides)


def _plain(layer: DeformableDownsampling, x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding)


def _post_processing(shape: tuple[int, int], queries: int) -> dict[str, Callable[[], object]]:
    numbers: dict[str, Any] = dict(num_things_classes=80, num_stuff_classes=53)
    classes = sum(numbers.values())
    class_logits = confident_class_logits(queries, queries, classes)
    # Every query has a band of columns to itself, with a ragged border: all of them win.
    columns = torch.arange(shape[1]) * queries // shape[1]
    mask_logits = torch.where(torch.arange(queries)[:, None, None] == columns, 4.0, -4.0)
    mask_logits = mask_logits + torch.randn(queries, *shape)
    test_cfg = dict(object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True)
    calls = {}
    for name, kind in (("mmdet", MaskFormerFusionHead), ("ours", HCFormerFusionHead)):
        head: MaskFormerFusionHead = kind(**numbers, test_cfg=test_cfg)
        calls[name] = _without_gradients(
            partial(head.panoptic_postprocess, class_logits, mask_logits)
        )
    return calls


class _Calls:
    """Calls of functions on the same maps, by name."""

    def __init__(self, maps: Sequence[Tensor], parameters: list[Tensor], one: Pass) -> None:
        self.by_name: dict[str, Callable[[], object]] = {}
        self._backward = one == "forward+backward"
        self._parameters = parameters
        self._maps = {
            layout: [
                x.contiguous(memory_format=memory).requires_grad_(self._backward) for x in maps
            ]
            for layout, memory in _LAYOUTS.items()
        }
        self._gradients: dict[tuple[object, ...], Tensor] = {}

    def add(self, name: str, layout: str, function: Callable[..., Any]) -> None:
        maps = self._maps[layout]
        call = _without_gradients(partial(function, *maps))
        if self._backward:
            outputs = function(*maps)
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            call = partial(
                _differentiate,
                partial(function, *maps),
                [*maps, *self._parameters],
                [self._gradient_of(index, output) for index, output in enumerate(outputs)],
            )
        self.by_name[f"{name}, {layout}"] = call

    def _gradient_of(self, index: int, output: Tensor) -> Tensor:
        """A random gradient, in the memory of the output: what comes back in training."""
        key = (index, output.stride())
        if key not in self._gradients:
            self._gradients[key] = torch.randn_like(output)
        return self._gradients[key]


def _differentiate(
    function: Callable[[], Any], inputs: list[Tensor], gradients: list[Tensor]
) -> object:
    # Plain convolutions do not read offsets.
    return torch.autograd.grad(function(), inputs, gradients, allow_unused=True)


def _without_gradients(function: Callable[[], object]) -> Callable[[], object]:
    return torch.no_grad()(function)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # PyTorch stops compiling a function that it has compiled for many shapes.
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)
