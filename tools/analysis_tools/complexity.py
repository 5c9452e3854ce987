"""Parameters and multiply-adds of a model, by fvcore."""

import math
from collections import Counter
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from mmengine.model import BaseModel
from torch import Tensor, nn


class _Tensors(nn.Module):
    """A model's plain forward pass as a function of the image alone, which can be traced."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        with torch.no_grad():
            return self.model(image, None, mode="tensor")


def _one_per_element(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(outputs[0].type().sizes())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, the frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: BaseModel, height: int, width: int) -> Counter[str]:
    """Multiply-adds of backbone, neck, head and decoding for one image, by kind of operator.

    The conventions are fvcore's: a multiply-add is one operation, convolutions, matrix products and
    normalizations count, elementwise operations do not. Of the nine products of the decoding,
    eq. (5), the eight that are added up count. Deformable convolutions count as the plain
    convolutions that they replace, and the convolutions that predict their offsets as themselves.
    Resizing of the masks to the image is left out.

    Args:
        model: A detector or segmentor; it is put into evaluation mode.
        height: Height of the input, in pixels.
        width: Width of the input, in pixels.

    Returns:
        Counts by kind of operator; ``total()`` sums them up.
    """
    model.eval()
    image = torch.zeros(1, 3, height, width)
    analysis = FlopCountAnalysis(_Tensors(model), image)
    analysis.set_op_handle("aten::addcmul_", _one_per_element)
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return analysis.by_operator()
