"""Taps: where in a backbone the maps before and after a downsampling are read.

A tap names a module whose input is the fine and whose output is the coarse map.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...ops.neighbourhood import coarse_size

Pair = tuple[Tensor, Tensor]
"""A fine map ``(B, C, H, W)`` and the coarse map ``(B, C', ⌈H/2⌉, ⌈W/2⌉)`` under it."""

_LOCAL = threading.local()


def _capture(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    captured = getattr(_LOCAL, "captured", None)
    if captured is not None and args:
        captured[name] = (args[0], output)


def attach(backbone: nn.Module, taps: Sequence[str]) -> None:
    """Make ``backbone`` report the maps at ``taps`` to :func:`recording`, and only to it.

    Raises:
        ValueError: A tap is no module of the backbone.
    """
    modules = dict(backbone.named_modules())
    for name in taps:
        if name not in modules:
            raise ValueError(
                f"expected taps to name modules of {type(backbone).__name__}, got {name!r}; "
                f"those that halve the resolution are {halving_modules(backbone)}"
            )
        # A partial of a plain function, so that copies of the model copy their hooks.
        modules[name].register_forward_hook(partial(_capture, name))


@contextmanager
def recording() -> Iterator[dict[str, Pair]]:
    """Collect what the taps see inside the block, for this call and this thread alone."""
    outer = getattr(_LOCAL, "captured", None)
    captured: dict[str, Pair] = {}
    _LOCAL.captured = captured
    try:
        yield captured
    finally:
        _LOCAL.captured = outer


def default_taps(backbone: nn.Module) -> list[str] | None:
    """The taps of a known family of backbones, finest first; None for an unknown one.

    ResNets (``res_layers`` lists their stages): the first block of every stage but the first.
    """
    stages = getattr(backbone, "res_layers", None)
    if isinstance(stages, list) and all(isinstance(stage, str) for stage in stages):
        return [f"{stage}.0" for stage in stages[1:]]
    return None


def halves(fine: Any, coarse: Any) -> bool:
    """Whether two values are maps, the second at half the resolution of the first."""
    return (
        isinstance(fine, Tensor)
        and isinstance(coarse, Tensor)
        and fine.dim() == coarse.dim() == 4
        and tuple(coarse.shape[-2:]) == coarse_size(*fine.shape[-2:])
    )


def dry_run(backbone: nn.Module, side: int = 64) -> Any:
    """Run ``backbone`` on a blank square image, leaving no trace in it, and return its output."""
    modes = {module: module.training for module in backbone.modules()}
    stem = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    image = stem.weight.new_zeros((1, stem.in_channels, side, side))
    backbone.eval()
    try:
        with torch.no_grad():
            return backbone(image)
    finally:
        for module, mode in modes.items():
            module.training = mode


def halving_modules(backbone: nn.Module) -> list[str]:
    """The modules of ``backbone`` that halve the resolution, found by a dry run."""
    found: list[str] = []

    def listener(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and halves(args[0], output):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(listener(name))
        for name, module in backbone.named_modules()
        if name
    ]
    try:
        dry_run(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return found
