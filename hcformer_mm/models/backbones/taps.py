"""Taps: modules of a backbone at which the maps before and after a downsampling are read.

The input of a tap is the fine map and its output the coarse one. Each is a tensor ``(B, C, H, W)``
or, as in transformers, tokens ``(B, H·W, C)`` followed by their size ``(H, W)``.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...ops.neighborhood import coarse_size

DRY_RUN_SIZES = ((64, 96), (224, 224), (384, 384), (512, 512))
"""Sizes of the blank images of a dry run. The first is not square, so that pooling a whole map to a
pixel does not look like halving it; the others serve backbones with fixed sizes or windows."""

_LOCAL = threading.local()


class Pair(NamedTuple):
    """The maps at a tap.

    Attributes:
        fine: Map ``(B, C, H, W)`` before the downsampling.
        coarse: Map ``(B, C', ⌈H/2⌉, ⌈W/2⌉)`` after it.
        tokens: Whether the module returned the coarse map as tokens.
    """

    fine: Tensor
    coarse: Tensor
    tokens: bool


def _read_map(values: Any) -> tuple[Tensor, bool] | None:
    """Map at the start of ``values`` and whether it came as tokens; None if there is none."""
    match values if isinstance(values, (tuple, list)) else (values,):
        case [Tensor() as x, *rest] if x.dim() == 4:
            # Several maps are the features of a whole backbone, or inputs to fuse.
            several = any(isinstance(value, Tensor) and value.dim() == 4 for value in rest)
            return None if several else (x, False)
        case [Tensor() as x, [height, width], *_] if x.dim() == 3:
            # Under tracing the sides are symbols or tensors of zero dimensions.
            sides = (height, width)
            scalar = all(
                isinstance(s, int | torch.SymInt) or getattr(s, "shape", None) == () for s in sides
            )
            if scalar and height * width == x.shape[1]:
                return x.transpose(1, 2).unflatten(2, sides), True
    return None


def _capture(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> None:
    captured = getattr(_LOCAL, "captured", None)
    if captured is None:
        return
    fine, coarse = _read_map((*args, *kwargs.values())), _read_map(output)
    if fine is not None and coarse is not None:
        captured[name] = Pair(fine[0], *coarse)


def attach(backbone: nn.Module, taps: Sequence[str]) -> list[Any]:
    """Make ``backbone`` report the maps at ``taps`` to :func:`recording`.

    Returns:
        Handles that remove the hooks.

    Raises:
        ValueError: A tap is not a module of the backbone.
    """
    modules = dict(backbone.named_modules())
    for name in taps:
        if name not in modules:
            raise ValueError(
                f"expected taps to name modules of {type(backbone).__name__}, got {name!r}; "
                f"{describe_halving_modules(backbone)}"
            )
    # The hooks hold no reference to the backbone, so those of a copied model work as well.
    return [
        modules[name].register_forward_hook(partial(_capture, name), with_kwargs=True)
        for name in taps
    ]


@contextmanager
def recording() -> Iterator[dict[str, Pair]]:
    """Collect the maps at the taps by name, for this call and this thread alone."""
    outer = getattr(_LOCAL, "captured", None)
    captured: dict[str, Pair] = {}
    _LOCAL.captured = captured
    try:
        yield captured
    finally:
        _LOCAL.captured = outer


def default_taps(backbone: nn.Module) -> list[str] | None:
    """Names of the taps of a known family of backbones, finest first; None for others.

    The family is recognized by its structure:

    - ResNets list the names of their stages in ``res_layers``: the first block of every stage but
      the first;
    - ConvNeXts have ``downsample_layers``: all but the stem;
    - Swins have ``stages`` with a module ``downsample``: all of these;
    - PVTs and MiTs have ``layers`` of lists that begin with a patch embedding: all but the first.
    """
    names = getattr(backbone, "res_layers", None)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return [f"{name}.0" for name in names[1:]]
    lists = {
        name: child for name, child in backbone.named_children() if isinstance(child, nn.ModuleList)
    }
    if "downsample_layers" in lists:
        return [f"downsample_layers.{i}" for i in range(1, len(lists["downsample_layers"]))]
    stages = [
        f"stages.{i}.downsample"
        for i, stage in enumerate(lists.get("stages", ()))
        if isinstance(getattr(stage, "downsample", None), nn.Module)
    ]
    if stages:
        return stages
    layers = lists.get("layers", ())
    if layers and all(
        isinstance(layer, nn.ModuleList) and hasattr(layer[0], "projection") for layer in layers
    ):
        return [f"layers.{i}.0" for i in range(1, len(layers))]
    return None


def halves(pair: Pair) -> bool:
    """Whether the coarse map has half the resolution of the fine one."""
    fine, coarse = tuple(pair.fine.shape[-2:]), tuple(pair.coarse.shape[-2:])
    return coarse == coarse_size(*fine) != fine


def dry_run(backbone: nn.Module) -> dict[str, Pair]:
    """Run the backbone on a blank image, without side effects, and return the maps at its taps.

    Raises:
        ValueError: The backbone fails on every size of :data:`DRY_RUN_SIZES`.
    """
    # Usually the first convolution is the stem, but some models register another one before it.
    convs = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    channels = dict.fromkeys((3, *(conv.in_channels for conv in (next(convs, None),) if conv)))
    shapes = [(1, count, *size) for count in channels for size in DRY_RUN_SIZES]
    parameter = next(backbone.parameters(), torch.zeros(()))
    modes = {module: module.training for module in backbone.modules()}
    gpus = {p.device for p in backbone.parameters() if p.is_cuda}
    # Set one by one: the backbone's own `train()` may freeze layers.
    for module in modes:
        module.training = False
    failure = None
    try:
        for shape in shapes:
            with torch.no_grad(), torch.random.fork_rng(gpus), recording() as captured:
                try:
                    backbone(parameter.new_zeros(shape))
                # Backbones reject a size with exceptions of any type.
                except Exception as error:
                    failure = failure or error
                else:
                    return captured
    finally:
        for module, mode in modes.items():
            module.training = mode
    raise ValueError(
        f"expected {type(backbone).__name__} to run on a blank image of one of the shapes "
        f"{shapes}; the first attempt failed with: {failure}"
    ) from failure


def halving_modules(backbone: nn.Module) -> list[str]:
    """Names of the modules that halve the resolution in a dry run, in the order of their calls."""
    handles = attach(backbone, [name for name, _ in backbone.named_modules() if name])
    try:
        captured = dry_run(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, pair in captured.items() if halves(pair)]


def describe_halving_modules(backbone: nn.Module) -> str:
    """List the modules of ``backbone`` that can be taps, as a clause of an error message."""
    try:
        names = halving_modules(backbone)
    except ValueError as error:
        return f"the dry run that looks for such modules failed: {error}"
    if names:
        return f"these halve the resolution in a dry run: {names}"
    return (
        "a dry run found no module that halves the resolution of a map (B, C, H, W), or of tokens "
        "(B, H·W, C) with their size"
    )
