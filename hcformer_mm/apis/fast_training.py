"""What makes training faster and smaller and leaves gradients as they are, up to rounding."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .fast_inference import misreading_layer
from .folding import fold_frozen


def speed_up_training(
    model: nn.Module, *, fold_bn: bool = True, channels_last: bool = True
) -> Callable[[], None]:
    """Prepare a model for training: frozen BatchNorm in the convolutions, memory channels-last.

    Parameters, their names and their layout stay; so checkpoints, optimizers and averaged weights
    go on as they were. What cannot be done for a model is left out: folding, with a warning, where
    :func:`~hcformer_mm.apis.folding.fold_frozen` fails; channels-last memory where a layer computes
    wrong numbers on it.

    Args:
        model: A model, before it is wrapped; changed in place.
        fold_bn: Whether convolutions take frozen BatchNorms in.
        channels_last: Whether the backbone gets its pictures in channels-last memory, and so hands
            on its maps.

    Returns:
        A function that undoes it.
    """
    undo: list[Callable[[], None]] = []
    if fold_bn:
        try:
            undo.append(fold_frozen(model))
        except RuntimeError as error:
            warnings.warn(f"frozen BatchNorm is not folded: {error}", stacklevel=2)
    if channels_last and misreading_layer(model) is None:
        backbone = getattr(model, "backbone", model)
        undo.append(backbone.register_forward_pre_hook(_to_channels_last).remove)

    def undo_all() -> None:
        for function in reversed(undo):
            function()

    return undo_all


def _to_channels_last(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    picture, *others = args
    if isinstance(picture, Tensor) and picture.dim() == 4:
        picture = picture.contiguous(memory_format=torch.channels_last)
    return (picture, *others)
