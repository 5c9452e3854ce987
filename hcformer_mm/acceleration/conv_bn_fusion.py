"""BatchNorm fused into convolutions, where runs on a small image show that it can be."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from mmcv.cnn.bricks.wrappers import Conv2d
from mmcv.ops import ModulatedDeformConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.layers.deformable_downsampling import DeformableDownsampling
from .layer_trace import Call, Calls, record

TOLERANCE = 1e-2
"""How far values may be off after fusing, relative to the largest one. Rounding stays far below
it, in GPUs' TF32 too; what cannot be fused is far above it."""


FusedPairs = dict[Any, tuple[_BatchNorm, Any]]
"""For convolutions, the BatchNorm that reads them and what does the work of both."""

# A class that does more in a forward of its own is another operation, at other sizes perhaps.
_SCALABLE = {nn.Conv2d.forward, Conv2d.forward, DeformableDownsampling.forward}
_NORMS = {_BatchNorm.forward, nn.SyncBatchNorm.forward}


@torch.no_grad()
def fuse(model: nn.Module) -> Callable[[], None]:
    """Fuse every BatchNorm that can be fused into the convolution that it reads.

    Args:
        model: A model as of :func:`~hcformer_mm.acceleration.inference.fuse_conv_bn`; changed in
            place.

    Returns:
        A function that puts back what was replaced.

    Raises:
        ValueError: The model is in training mode.
        RuntimeError: It does not run on an image alone, or gives other results; the model is as it
            was.
    """
    if model.training:
        raise ValueError(
            f"expected {type(model).__name__} in evaluation mode to fuse BatchNorm, got one in "
            "training mode; call its eval()"
        )
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d | ModulatedDeformConv2d)]
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]

    def put(pairs: FusedPairs) -> Callable[[], None]:
        fused = {conv: module for conv, (_, module) in pairs.items()}
        return _replace(model, fused | {norm: nn.Identity() for norm, _ in pairs.values()})

    return _fuse_pairs(model, convs, norms, _fuse, put)


@torch.no_grad()
def fuse_frozen_bn(model: nn.Module) -> Callable[[], None]:
    """Let convolutions do what a frozen BatchNorm behind them does, in training too.

    At every call a convolution multiplies its weights by those of the BatchNorm. For the backward
    pass the map between the two is not kept, but the product is: that saves memory unless images
    are tiny. Modules and parameters stay where they are, and gradients are the same up to rounding.
    MMEngine's ``efficient_conv_bn_eval`` does the same for models that torch.fx can trace.

    A BatchNorm is frozen if training mode leaves it in evaluation mode and its parameters need no
    gradient. Fused is what a run in evaluation mode shows to be a plain or deformable convolution
    that a BatchNorm alone reads; what training alone does in between is not seen.

    Args:
        model: A model that predicts from an image alone, in any mode; changed in place.

    Returns:
        A function that undoes it.

    Raises:
        RuntimeError: As of :func:`fuse`.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        frozen = [m for m in model.modules() if _is_frozen(m)]
        model.eval()
        convs = [m for m in model.modules() if type(m).forward in _SCALABLE]
        return _fuse_pairs(model, convs, frozen, _scale, _override)
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_scaled(module: nn.Module) -> bool:
    """Whether :func:`fuse_frozen_bn` lets a convolution do the work of a BatchNorm, too."""
    forward = vars(module).get("forward")
    return isinstance(forward, partial) and forward.func is _convolve_scaled


def _is_frozen(module: nn.Module) -> bool:
    is_norm = isinstance(module, _BatchNorm) and type(module).forward in _NORMS
    return is_norm and not module.training and not any(p.requires_grad for p in module.parameters())


def _fuse_pairs(
    model: nn.Module,
    convs: list[Any],
    norms: list[Any],
    fuse: Callable[[Any, _BatchNorm], Callable[[Tensor], Tensor]],
    put: Callable[[FusedPairs], Callable[[], None]],
) -> Callable[[], None]:
    """Fuse convolutions with the norms that read them, and ``put`` that in their place."""
    convs = [conv for conv in convs if not _is_watched(conv)]
    norms = [m for m in norms if m.running_mean is not None and not _is_watched(m)]
    if not norms:
        return lambda: None
    calls = record(model, [*convs, *norms])
    pairs: FusedPairs = {}
    expected = dict(calls.of)
    for conv, norm in _pairs(convs, calls):
        fused = fuse(conv, norm)
        # Not so where a layer does more than its base class: a convolution that standardizes its
        # weights, a BatchNorm that ends in an activation.
        if _agree([fused(call.x_values) for call in calls.of[conv]], calls.of[norm]):
            pairs[conv] = norm, fused
            del expected[conv]
            expected[fused if isinstance(fused, nn.Module) else conv] = expected.pop(norm)
    undo = put(pairs)
    try:
        after = record(model, list(expected)).of
        agree = all(_agree([c.y_values for c in after[m]], old) for m, old in expected.items())
    except BaseException:
        undo()
        raise
    if not agree:
        undo()
        raise RuntimeError(
            f"expected {type(model).__name__} with the same results after fusing BatchNorm, got "
            "others; does it predict at random, or read what its convolutions return out of "
            "PyTorch's sight?"
        )
    return undo


def _fuse(conv: Any, norm: _BatchNorm) -> nn.Module:
    fused = fuse_conv_bn_eval(conv, norm)
    for name, child in conv.named_children():  # copied by that; they predict offsets
        setattr(fused, name, child)
    return fused


def _scale(conv: Any, norm: _BatchNorm) -> Callable[[Tensor], Tensor]:
    return partial(_convolve_scaled, conv, norm)


def _override(pairs: FusedPairs) -> Callable[[], None]:
    """Give convolutions another ``forward``, and norms none."""
    for conv, (norm, scaled) in pairs.items():
        conv.__dict__["forward"], norm.__dict__["forward"] = scaled, _as_it_is

    def undo() -> None:
        for conv, (norm, _) in pairs.items():
            del conv.__dict__["forward"], norm.__dict__["forward"]

    return undo


def _convolve_scaled(conv: Any, norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a frozen BatchNorm says of a convolution: one with other weights."""
    if norm.training:
        raise RuntimeError(
            "expected a BatchNorm that stays in evaluation mode, as it was fused into a "
            "convolution, got one in training mode; undo the fusing first"
        )
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias
    weight = conv.weight * scale.view(-1, 1, 1, 1)
    if isinstance(conv, DeformableDownsampling):
        return conv.convolve(x, weight, shift)
    return conv._conv_forward(x, weight, shift)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _is_watched(module: nn.Module) -> bool:
    """Whether others see, or change, what goes through a module."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or module._backward_hooks or module._backward_pre_hooks) or (
        "forward" in vars(module)
    )


def _pairs(convs: list[Any], calls: Calls) -> Iterator[tuple[Any, _BatchNorm]]:
    """Convolutions with the BatchNorm that reads them, of which neither has to do with others."""
    writers = {id(call.y): conv for conv in convs for call in calls.of.get(conv, ())}
    readers: defaultdict[nn.Module | None, list[_BatchNorm]] = defaultdict(list)
    for norm in (layer for layer in calls.of if isinstance(layer, _BatchNorm)):
        for call in calls.of[norm]:
            readers[writers.get(id(call.x))].append(norm)
    for conv in convs:
        norms, outputs = readers[conv], {id(call.y) for call in calls.of.get(conv, ())}
        if len(set(norms)) != 1 or norms[0].training or outputs & calls.read_by_others:
            continue
        if len(norms) == len(calls.of[conv]) == len(calls.of[norms[0]]):
            yield conv, norms[0]


def _agree(outputs: list[Tensor], calls: list[Call]) -> bool:
    """Whether outputs are those of calls, up to rounding."""
    return len(outputs) == len(calls) and all(
        torch.allclose(y, call.y_values, rtol=0, atol=TOLERANCE * float(call.y_values.abs().max()))
        for y, call in zip(outputs, calls, strict=True)
    )


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> Callable[[], None]:
    """Put modules in the places of others; the function returned puts those back."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child in new
    ]
    for parent, name, child in places:
        setattr(parent, name, new[child])

    def undo() -> None:
        for parent, name, child in places:
            setattr(parent, name, child)

    return undo
