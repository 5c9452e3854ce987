"""Training in less time and memory, with equal gradients up to rounding."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from .conv_bn_fusion import fuse_frozen_bn
from .inference import check_channels_last, find_contiguous_only_layer


def prepare_for_training(
    model: nn.Module, *, fuse_bn: bool = True, channels_last: bool = True
) -> Callable[[], None]:
    """Fuse frozen BatchNorm into convolutions and run the backbone on channels-last maps.

    Parameters keep their names and their layout, so checkpoints, optimizers and averaged weights
    work as before. Fusing is skipped, with a warning, if
    :func:`~hcformer_mm.acceleration.conv_bn_fusion.fuse_frozen_bn` fails; channels-last memory is
    skipped if a layer would compute wrong numbers on it or, with a warning, without a backbone.

    Args:
        model: A model, before it is wrapped for distributed training; changed in place.
        fuse_bn: Whether frozen BatchNorm is fused.
        channels_last: Whether the backbone gets its images channels-last.

    Returns:
        A function that undoes this.
    """
    undo = ExitStack()
    if fuse_bn:
        try:
            undo.callback(fuse_frozen_bn(model))
        except RuntimeError as error:
            warnings.warn(f"frozen BatchNorm is not fused: {error}", stacklevel=2)
    if channels_last and find_contiguous_only_layer(model) is None:
        try:
            undo.callback(feed_channels_last(model))
        except ValueError as error:
            warnings.warn(f"memory is not channels-last: {error}", stacklevel=2)
    return undo.close


def feed_channels_last(model: nn.Module) -> Callable[[], None]:
    """Convert the backbone's input to channels-last memory, so that its maps are channels-last.

    Args:
        model: A model with a ``backbone``, or a backbone itself.

    Returns:
        A function that undoes this.

    Raises:
        ValueError: There is no backbone, or a layer computes wrong numbers on channels-last maps.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None and isinstance(model, BaseModel):
        raise ValueError(f"expected a model with a backbone, got {type(model).__name__} without")
    check_channels_last(model)
    # One hook is enough: HCBackbone passes its input on to the backbone that it wraps.
    return (model if backbone is None else backbone).register_forward_pre_hook(_lay_out).remove


def _lay_out(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last)
        if isinstance(x, Tensor) and x.dim() == 4
        else x
        for x in args
    )
