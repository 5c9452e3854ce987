"""What makes inference faster and leaves the results as they are, up to rounding."""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..models.layers.deformable_downsampling import DeformableDownsampling
from .conv_bn_fusion import fuse

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions of inference by name; all but the first are those of autocast."""


def speed_up(model: nn.Module) -> Callable[[], None]:
    """Prepare a model for inference, on any device: BatchNorm fused, memory channels-last.

    What cannot be done for a model is left out: fusing, with a warning, where
    :func:`fuse_conv_bn` fails; channels-last memory where a layer computes wrong numbers on it.

    Args:
        model: A model in evaluation mode; changed in place.

    Returns:
        A function that puts the model back as it was, its weights contiguous. While it is kept,
        the unfused weights are kept too.

    Raises:
        ValueError: The model is in training mode.
    """
    unfuse = None
    try:
        unfuse = fuse(model)
    except RuntimeError as error:
        warnings.warn(f"BatchNorm is not fused: {error}", stacklevel=2)
    channels_last = misreading_layer(model) is None
    if channels_last:
        to_channels_last(model)

    def undo() -> None:
        if unfuse is not None:
            unfuse()
        if channels_last:
            model.to(memory_format=torch.contiguous_format)

    return undo


def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """Fuse every BatchNorm into the convolution before it, deformable ones of ours included.

    Which convolution that is, and that the two can be one, shows in runs on a small random image:
    in the order of their names, a BatchNorm may follow a convolution that it does not read. Left
    alone are layers that do not take part in predictions, and those with hooks.

    Args:
        model: A model in evaluation mode: a detector, a segmentor or a module of images
            ``(1, 3, H, W)``; changed in place.

    Returns:
        The model, with the same outputs up to rounding.

    Raises:
        ValueError: The model is in training mode.
        RuntimeError: It does not run on an image alone, or would give other outputs.
    """
    fuse(model)
    return model


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of a model channels-last, which makes its maps so.

    Raises:
        ValueError: The model has a layer that computes wrong numbers on such maps.
    """
    check_reads_channels_last(model)
    return model.to(memory_format=torch.channels_last)


def check_reads_channels_last(model: nn.Module) -> None:
    """Raise a ValueError if a layer of a model computes wrong numbers on channels-last maps."""
    name = misreading_layer(model)
    if name is not None:
        raise ValueError(
            "expected no deformable convolution of mmcv and no other of its operators that read "
            f"any memory as contiguous, got {name!r} of {type(model).__name__}; leave out "
            "channels-last"
        )


def check_dtype(name: str) -> torch.dtype:
    """The precision of a name.

    Raises:
        ValueError: It is none of :data:`DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"expected dtype to be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


Step = Callable[..., list[BaseDataElement]]


def step_in(dtype: torch.dtype, model: BaseModel) -> Step:
    """The ``test_step`` of a model in a precision.

    Args:
        dtype: float32, or the type of autocast.
        model: A model, on the device where it will run.

    Returns:
        ``test_step``, under autocast unless ``dtype`` is float32. Floating-point values of its
        results are float32, as numpy may have no other and metrics expect it.
    """
    if dtype == torch.float32:
        return model.test_step
    step = model.test_step
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
    """Turn values of lower precision into float32, in place."""
    for name, value in element.items():
        if isinstance(value, BaseDataElement):
            _to_float32(value)
        elif isinstance(value, Tensor) and value.is_floating_point():
            element.set_field(value.float(), name, field_type="data")


def misreading_layer(model: nn.Module) -> str | None:
    """Name of a layer that computes wrong numbers on channels-last maps, if there is one.

    mmcv's kernels (deformable convolutions, RoIAlign) read any memory as if it were contiguous.
    """
    for name, module in model.named_modules():
        # Ours makes its maps contiguous; the attention gets tokens, not maps.
        safe = isinstance(module, DeformableDownsampling | MultiScaleDeformableAttention)
        if not safe and any(cls.__module__.startswith("mmcv.ops.") for cls in type(module).__mro__):
            return name
    return None
