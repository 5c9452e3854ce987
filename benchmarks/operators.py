"""Operators to time: ours and reference implementations, on random maps."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import mmcv.ops
import torch
import torchvision.ops
from mmdet.models.backbones import ResNet
from mmdet.models.seg_heads import MaskFormerFusionHead
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import Call, Case, Shape
from hcformer_mm.models.heads import HCFormerFusionHead
from hcformer_mm.models.layers.clustering import ClusteringModule
from hcformer_mm.models.layers.deformable_downsampling import make_downsampling_deformable
from hcformer_mm.ops import decode
from hcformer_mm.ops.deform_conv import modulated_deform_conv2d
from hcformer_mm.ops.neighborhood import NUM_CANDIDATES, coarse_size
from tests.helpers.reference import listing_decode, listing_module

Functions = dict[str, Callable[..., Any]]
Inputs = tuple[Functions, list[Tensor], list[Tensor]]  # and their maps and parameters
OPERATORS = ("clustering", "decoding", "deform", "post-processing")
PASSES = ("forward", "forward+backward")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SHAPES = {"deform": (512, 672), "post-processing": (800, 1216)}
# Channels of the maps that a ResNet-50 downsamples, by stride; there are twice as many after.
RESNET50_CHANNELS = {4: 256, 8: 512, 16: 1024}


def cases(args: Namespace) -> Iterator[Case]:
    """Operators and their reference implementations; the first call of a case is the baseline."""
    if args.device != "cpu":
        torch.set_default_device(args.device)
    for operator in args.operator:
        for shape in args.shape or [SHAPES.get(operator, (800, 1344))]:
            torch.manual_seed(args.seed)
            setting = dict(operator=operator, shape=f"{shape[0]}x{shape[1]}")
            if operator == "post-processing":
                setting |= {"stride": 1, "channels": args.kept_queries, "pass": "forward"}
                yield setting, post_processing_calls(shape, args.kept_queries)
                continue
            settings: list[tuple[Any, Any, Callable[..., Inputs]]]
            if operator == "clustering":
                settings = [(s, "-", partial(clustering, shape, s)) for s in args.stride]
            elif operator == "decoding":
                pairs = product(args.stride, args.channels)
                settings = [(s, q, partial(decoding, shape, s, q)) for s, q in pairs]
            else:
                settings = [("4, 8, 16", "-", partial(deform, shape))]
            for (stride, number, make), one in product(settings, args.passes):
                setting |= {"stride": stride, "channels": number, "pass": one}
                flags = dict(backward=one == "forward+backward", compiled=args.compile)
                yield dict(setting), calls_on_maps(*make(), **flags)


def clustering(shape: Shape, stride: int) -> Inputs:
    """Listing 1 and ours at one level of a ResNet-50, including norms and projections."""
    channels = RESNET50_CHANNELS[stride]
    module = ClusteringModule(channels, 2 * channels)
    size = shape[0] // stride, shape[1] // stride
    maps = [torch.randn(1, channels, *size), torch.randn(1, 2 * channels, *coarse_size(*size))]
    functions = {"listing": partial(listing_module, module), "ours": module}
    return functions, maps, list(module.parameters())


def decoding(shape: Shape, stride: int, masks: int) -> Inputs:
    """Listing 2 and ours, decoding masks from ``2 * stride`` to ``stride``."""
    size = shape[0] // stride, shape[1] // stride
    assignment = torch.randn(1, NUM_CANDIDATES, *size).softmax(dim=1)
    maps = [torch.randn(1, masks, *coarse_size(*size)), assignment]
    return {"listing": listing_decode, "ours": decode}, maps, []


def deform(shape: Shape) -> Inputs:
    """DCNv2 in the six downsampling layers of a ResNet-50; plain convolutions show the scale."""
    layers: list[Any] = []
    maps: list[Tensor] = []
    network = ResNet(depth=50)
    for stride, stage in zip(RESNET50_CHANNELS, network.res_layers[1:], strict=True):
        block = getattr(network, stage)[0]
        size = shape[0] // stride, shape[1] // stride
        for name in make_downsampling_deformable(block):
            layers.append(block.get_submodule(name))
            taps = layers[-1].kernel_size[0] ** 2
            offset = torch.randn(1, 2 * taps, *coarse_size(*size))  # about a pixel
            mask = torch.rand(1, taps, *coarse_size(*size))
            maps += [torch.randn(1, layers[-1].in_channels, *size), offset, mask]
    functions: Functions = {
        "mmcv": lambda m, x, offset, mask: mmcv.ops.modulated_deform_conv2d(
            *(x, offset, mask, m.weight, m.bias, m.stride, m.padding),
            *(m.dilation, m.groups, m.deform_groups),
        ),
        "torchvision": lambda m, x, offset, mask: torchvision.ops.deform_conv2d(
            x, offset, m.weight, m.bias, m.stride, m.padding, mask=mask
        ),
        "ours": lambda m, x, offset, mask: modulated_deform_conv2d(
            x, offset, mask, m.weight, m.bias, stride=m.stride[0], padding=m.padding[0]
        ),
        "plain convolutions": lambda m, x, *_: F.conv2d(x, m.weight, m.bias, m.stride, m.padding),
    }

    def run_all(convolve: Callable[..., Tensor], *maps: Tensor) -> list[Tensor]:
        return [convolve(m, *maps[3 * i : 3 * i + 3]) for i, m in enumerate(layers)]

    functions = {name: partial(run_all, convolve) for name, convolve in functions.items()}
    return functions, maps, [p for layer in layers for p in (layer.weight, layer.bias)]


def calls_on_maps(
    functions: Functions,
    maps: list[Tensor],
    parameters: list[Tensor],
    *,
    backward: bool,
    compiled: bool,
) -> dict[str, Call]:
    """Call every function on contiguous and on channels-last maps.

    Backward passes start from a random gradient in the output's memory format and return the
    gradients of maps and parameters.
    """
    given = {
        layout: [x.contiguous(memory_format=memory).requires_grad_(backward) for x in maps]
        for layout, memory in LAYOUTS.items()
    }
    # mmcv reads channels-last maps as if they were contiguous.
    named = [(n, layout, f) for n, f in functions.items() for layout in LAYOUTS]
    named = [call for call in named if call[:2] != ("mmcv", "channels-last")]
    if compiled:
        torch.compiler.reset()  # PyTorch stops recompiling after many shapes.
        ours = torch.compile(functions["ours"], dynamic=False)
        named.append(("ours compiled", "channels-last", ours))
    gradients: dict[tuple[object, ...], Tensor] = {}
    calls: dict[str, Call] = {}
    for name, layout, function in named:
        forward = partial(function, *given[layout])
        calls[f"{name}, {layout}"] = torch.no_grad()(forward)
        if backward:
            outputs = forward()
            outputs = [outputs] if isinstance(outputs, Tensor) else outputs
            keys = [(i, y.stride()) for i, y in enumerate(outputs)]
            for key, y in zip(keys, outputs, strict=True):
                gradients.setdefault(key, torch.randn_like(y))
            inputs = [*given[layout], *parameters]
            call = partial(_differentiate, forward, inputs, [gradients[key] for key in keys])
            calls[f"{name}, {layout}"] = call
    return calls


def _differentiate(forward: Callable[[], Any], inputs: list[Tensor], grads: list[Tensor]) -> object:
    # Plain convolutions do not read offsets.
    return torch.autograd.grad(forward(), inputs, grads, allow_unused=True)


def post_processing_calls(shape: Shape, queries: int) -> dict[str, Call]:
    """``panoptic_postprocess`` of mmdet's fusion head and of ours; every query wins some pixels."""
    classes: dict[str, Any] = dict(num_things_classes=80, num_stuff_classes=53)
    class_logits = confident_class_logits(queries, queries, sum(classes.values()))
    # A band of columns for every query, with a ragged border.
    columns = torch.arange(shape[1]) * queries // shape[1]
    mask_logits = torch.where(torch.arange(queries)[:, None, None] == columns, 4.0, -4.0)
    mask_logits = mask_logits + torch.randn(queries, *shape)
    test_cfg = dict(object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True)
    calls: dict[str, Call] = {}
    for name, kind in (("mmdet", MaskFormerFusionHead), ("ours", HCFormerFusionHead)):
        process = kind(**classes, test_cfg=test_cfg).panoptic_postprocess
        calls[name] = torch.no_grad()(partial(process, class_logits, mask_logits))
    return calls


def confident_class_logits(queries: int, kept: int, num_classes: int) -> Tensor:
    """Class logits ``(Q, K + 1)``: ``kept`` confident objects, the other queries no object."""
    best = torch.full((queries,), num_classes)
    objects = torch.arange(kept) * queries // max(kept, 1)
    # 37 is coprime to most K, so a few queries already cover things and stuff.
    best[objects] = torch.arange(kept) * 37 % num_classes
    return 20.0 * F.one_hot(best, num_classes + 1)
