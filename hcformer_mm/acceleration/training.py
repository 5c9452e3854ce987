"""What makes training faster and smaller and leaves gradients as they are, up to rounding."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from .conv_bn_fusion import fuse_frozen_bn
from .inference import check_reads_channels_last, misreading_layer


def speed_up_training(
    model: nn.Module, *, fuse_bn: bool = True, channels_last: bool = True
) -> Callable[[], None]:
    """Prepare a model for training: frozen BatchNorm in the convolutions, memory channels-last.

    Parameters, their names and their layout stay; so checkpoints, optimizers and averaged weights
    go on as they were. What cannot be done for a model is left out: fusing, with a warning, where
    :func:`~hcformer_mm.acceleration.conv_bn_fusion.fuse_frozen_bn` fails; channels-last memory where a layer computes
    wrong numbers on it.

    Args:
        model: A model, before it is wrapped; changed in place.
        fuse_bn: Whether convolutions take frozen BatchNorms in.
        channels_last: Whether the backbone gets its images in channels-last memory, and so hands
            on its maps.

    Returns:
        A function that undoes it.
    """
    undo: list[Callable[[], None]] = []
    if fuse_bn:
        try:
            undo.append(fuse_frozen_bn(model))
        except RuntimeError as error:
            warnings.warn(f"frozen BatchNorm is not fused: {error}", stacklevel=2)
    if channels_last and misreading_layer(model) is None:
        try:
            undo.append(image_channels_last(model))
        except ValueError as error:
            warnings.warn(f"memory is not channels-last: {error}", stacklevel=2)

    def undo_all() -> None:
        for function in reversed(undo):
            function()

    return undo_all


def image_channels_last(model: nn.Module) -> Callable[[], None]:
    """Give the backbone of a model its images in channels-last memory.

    Args:
        model: A model with a ``backbone``, or a backbone itself.

    Returns:
        A function that undoes it.

    Raises:
        ValueError: There is no backbone, or a layer computes wrong numbers on such maps.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None and isinstance(model, BaseModel):
        raise ValueError(f"expected a model with a backbone, got {type(model).__name__} without")
    check_reads_channels_last(model)
    # One hook for all its calls: HCBackbone hands the image on to the backbone that it wraps.
    return (model if backbone is None else backbone).register_forward_pre_hook(_lay_out).remove


def _lay_out(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        x.contiguous(memory_format=torch.channels_last)
        if isinstance(x, Tensor) and x.dim() == 4
        else x
        for x in args
    )
