"""Faster inference with equal results, up to rounding."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..models.layers.deformable_downsampling import DeformableDownsampling
from .conv_bn_fusion import fuse_conv_bn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions of inference by name; all but float32 run under autocast."""

Step = Callable[..., list[BaseDataElement]]


def prepare_for_inference(model: nn.Module) -> Callable[[], None]:
    """Fuse BatchNorm and lay weights out channels-last, on any device.

    Fusing is skipped, with a warning, if
    :func:`~hcformer_mm.acceleration.conv_bn_fusion.fuse_conv_bn` fails; channels-last memory is
    skipped if a layer would compute wrong numbers on it.

    Args:
        model: A model in evaluation mode; changed in place.

    Returns:
        A function that restores the model, with contiguous weights. It keeps the unfused weights in
        memory.

    Raises:
        ValueError: The model is in training mode.
    """
    undo = ExitStack()
    try:
        undo.callback(fuse_conv_bn(model))
    except RuntimeError as error:
        warnings.warn(f"BatchNorm is not fused: {error}", stacklevel=2)
    if find_contiguous_only_layer(model) is None:
        to_channels_last(model)
        undo.callback(model.to, memory_format=torch.contiguous_format)
    return undo.close


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of a model channels-last, so that its maps become channels-last.

    Raises:
        ValueError: A layer of the model computes wrong numbers on such maps.
    """
    check_channels_last(model)
    return model.to(memory_format=torch.channels_last)


def check_channels_last(model: nn.Module) -> None:
    """Raise a ValueError if a layer of the model computes wrong numbers on channels-last maps."""
    name = find_contiguous_only_layer(model)
    if name is not None:
        raise ValueError(
            "expected a model without operators of mmcv, such as its deformable convolution, that "
            f"read any memory as contiguous, got {name!r} of {type(model).__name__}; do not use "
            "channels-last memory"
        )


def find_contiguous_only_layer(model: nn.Module) -> str | None:
    """Name of the first layer that computes wrong numbers on channels-last maps, or None.

    mmcv's kernels (deformable convolutions, RoIAlign) read any memory as if it were contiguous.
    """
    for name, module in model.named_modules():
        # The first makes its maps contiguous; the second gets tokens, not maps.
        safe = isinstance(module, DeformableDownsampling | MultiScaleDeformableAttention)
        if not safe and any(cls.__module__.startswith("mmcv.ops.") for cls in type(module).__mro__):
            return name
    return None


def check_dtype(name: str) -> torch.dtype:
    """Return the dtype with this name.

    Raises:
        ValueError: The name is not in :data:`DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


def autocast_test_step(model: BaseModel, dtype: torch.dtype) -> Step:
    """The ``test_step`` of a model under autocast.

    Args:
        model: A model, on the device where it will run.
        dtype: Precision of autocast; float32 returns ``test_step`` itself.

    Returns:
        A function like ``test_step``. Floating-point values of its results are float32, since
        metrics expect it and numpy has no bfloat16.
    """
    step = model.test_step
    if dtype == torch.float32:
        return step
    device_type = next(model.parameters()).device.type

    @wraps(step)
    def wrapped(*args: Any, **kwargs: Any) -> list[BaseDataElement]:
        with torch.autocast(device_type, dtype):
            samples = step(*args, **kwargs)
        for sample in samples:
            _to_float32(sample)
        return samples

    return wrapped


def _to_float32(element: BaseDataElement) -> None:
    """Convert floating-point values to float32, in place."""
    for name, value in element.items():
        if isinstance(value, BaseDataElement):
            _to_float32(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            element.set_field(value.float(), name, field_type="data")
