"""BatchNorm folded into convolutions, where runs on a small picture show that it can be."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from mmcv.ops import ModulatedDeformConv2d
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.backbones.taps import DRY_RUN_SIZES
from ..models.downsampling import DeformableDownsampling
from .benchmark_model import model_call

TOLERANCE = 1e-2
"""How far values may be off after folding, relative to the largest one. Rounding stays far below
it, in GPUs' TF32 too; what cannot be folded is far above it."""


class Call(NamedTuple):
    """Input and output of a layer, and what they were: activations change maps in place."""

    x: Tensor
    y: Tensor
    x_values: Tensor
    y_values: Tensor


Calls = defaultdict[nn.Module, list[Call]]


Fused = Callable[[Tensor], Tensor]
"""A convolution with a BatchNorm in it."""


@torch.no_grad()
def fold(model: nn.Module) -> Callable[[], None]:
    """Fold every BatchNorm that can be folded into the convolution that it reads.

    Args:
        model: A model as of :func:`~hcformer_mm.apis.fast_inference.fold_batch_norm`; changed in
            place.

    Returns:
        A function that puts back what was replaced.

    Raises:
        ValueError: The model is in training mode.
        RuntimeError: It does not run on a picture alone, or something else reads what convolutions
            return; the model is as it was.
    """
    if model.training:
        raise ValueError(
            f"expected {type(model).__name__} in evaluation mode to fold BatchNorm, got one in "
            "training mode; call its eval()"
        )

    def put(chosen: dict[Any, tuple[_BatchNorm, Any]]) -> Callable[[], None]:
        fused = {conv: module for conv, (_, module) in chosen.items()}
        return _replace(model, fused | {norm: nn.Identity() for norm, _ in chosen.values()})

    return _fold(model, list(model.modules()), _fuse, put)


@torch.no_grad()
def fold_frozen(model: nn.Module) -> Callable[[], None]:
    """Let convolutions do what a frozen BatchNorm behind them does, in training too.

    At every call a convolution multiplies its weights by those of the BatchNorm; for the backward
    pass, the map between the two is not kept. All modules and parameters stay where they are, and
    gradients are the same up to rounding. A BatchNorm is frozen if training mode leaves it in
    evaluation mode and its parameters need no gradient.

    Args:
        model: A model that predicts from a picture alone, in any mode; changed in place.

    Returns:
        A function that undoes it.

    Raises:
        RuntimeError: As of :func:`fold`.
    """
    training = model.training
    model.train()
    frozen = [
        module
        for module in model.modules()
        if not module.training and not any(p.requires_grad for p in module.parameters())
    ]
    model.eval()

    def put(chosen: dict[Any, tuple[_BatchNorm, Any]]) -> Callable[[], None]:
        for conv, (norm, scaled) in chosen.items():
            vars(conv)["forward"], vars(norm)["forward"] = scaled, _as_it_is

        def undo() -> None:
            for conv, (norm, _) in chosen.items():
                del vars(conv)["forward"], vars(norm)["forward"]

        return undo

    try:
        return _fold(model, frozen, lambda conv, norm: partial(_convolve_scaled, conv, norm), put)
    finally:
        model.train(training)


def _fold(
    model: nn.Module,
    norms: list[nn.Module],
    fuse: Callable[[Any, _BatchNorm], Fused],
    put: Callable[[dict[Any, tuple[_BatchNorm, Fused]]], Callable[[], None]],
) -> Callable[[], None]:
    """Fuse convolutions with those of ``norms`` that read them, and ``put`` that in place."""
    norms = [m for m in norms if isinstance(m, _BatchNorm) and m.running_mean is not None]
    norms = [norm for norm in norms if not _is_watched(norm)]
    if not norms:
        return lambda: None
    kinds = nn.Conv2d | ModulatedDeformConv2d
    convs = [m for m in model.modules() if isinstance(m, kinds) and not _is_watched(m)]
    calls = _record(model, [*convs, *norms])
    chosen: dict[Any, tuple[_BatchNorm, Fused]] = {}
    expected = dict(calls)
    for conv, norm in _pairs(convs, calls):
        fused = fuse(conv, norm)
        # Not so where a layer does more than its base class: a convolution that standardises its
        # weights, a BatchNorm that ends in an activation.
        if _agree([fused(call.x_values) for call in calls[conv]], calls[norm]):
            chosen[conv] = norm, fused
            del expected[conv]
            expected[fused if isinstance(fused, nn.Module) else conv] = expected.pop(norm)
    undo = put(chosen)
    # Nobody else may have read what the convolutions returned.
    after = _record(model, list(expected))
    if not all(_agree([c.y_values for c in after[m]], old) for m, old in expected.items()):
        undo()
        raise RuntimeError(
            f"expected convolutions of {type(model).__name__} that nothing but a BatchNorm reads, "
            "got other results after folding"
        )
    return undo


def _fuse(conv: Any, norm: _BatchNorm) -> nn.Module:
    fused = fuse_conv_bn_eval(conv, norm)
    for name, child in conv.named_children():  # copied by that; they predict offsets
        setattr(fused, name, child)
    return fused


def _convolve_scaled(conv: Any, norm: _BatchNorm, x: Tensor) -> Tensor:
    """What a frozen BatchNorm says of a convolution: one with other weights."""
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
    """Whether hooks of others see, or change, what goes through a module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _pairs(convs: list[Any], calls: Calls) -> Iterator[tuple[Any, _BatchNorm]]:
    """Convolutions with the BatchNorm that reads them, of which neither has to do with others."""
    writers = {id(call.y): conv for conv in convs for call in calls[conv]}
    readers: defaultdict[nn.Module | None, list[_BatchNorm]] = defaultdict(list)
    for norm in (layer for layer in calls if isinstance(layer, _BatchNorm)):
        for call in calls[norm]:
            readers[writers.get(id(call.x))].append(norm)
    for conv in convs:
        norms = readers[conv]
        alone = len(set(norms)) == 1 and len(norms) == len(calls[conv]) == len(calls[norms[0]])
        if alone and not norms[0].training:
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


def _record(model: nn.Module, layers: list[nn.Module]) -> Calls:
    """What layers see of a random picture, of the first size that the model takes."""

    def note(calls: Calls, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        calls[module].append(Call(args[0], y, args[0].clone(), y.clone()))

    failure = None
    for size in DRY_RUN_SIZES:
        calls: Calls = defaultdict(list)
        handles = [layer.register_forward_hook(partial(note, calls)) for layer in layers]
        try:
            _run(model, size)
        # Every model has its own way to refuse a size.
        except Exception as error:
            failure = failure or error
        else:
            return calls
        finally:
            for handle in handles:
                handle.remove()
    raise RuntimeError(
        f"expected {type(model).__name__} to run on a random picture of one of the sizes "
        f"{DRY_RUN_SIZES}; the first attempt failed with: {failure}"
    ) from failure


def _run(model: nn.Module, size: tuple[int, int]) -> None:
    if isinstance(model, BaseModel):
        model_call(model, size)()
        return
    generator = torch.Generator().manual_seed(0)
    model(torch.randn(1, 3, *size, generator=generator).to(next(model.parameters())))
