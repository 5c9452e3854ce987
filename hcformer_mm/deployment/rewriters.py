"""Replacements for modules that PyTorch cannot export for images of any size.

``nn.AdaptiveAvgPool2d`` and the window attention of mmdet and mmseg branch on sizes that they
compute from the map. During an export sizes are symbolic, and the export keeps only the branch
taken at the traced size. The replacements compute every size as a multiple of windows or cells,
and do not branch.
"""

from copy import deepcopy
from typing import cast

import torch
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmseg.models.backbones.swin import ShiftWindowMSA as SegShiftWindowMSA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from ..models.layers.deformable_downsampling import DeformableDownsampling

MASKED = -100.0
"""Value that mmdet and mmseg add to the logits of tokens that must not attend to each other."""


def rewrite_modules(model: nn.Module, *, deform_conv: bool = False) -> nn.Module:
    """Return a copy of a model in which this module's replacements are installed.

    Args:
        model: A model in evaluation mode; it is not changed.
        deform_conv: See :class:`~hcformer_mm.deployment.export.ExportableModel`.

    Returns:
        A copy whose outputs are equal up to rounding.
    """
    model = deepcopy(model)
    for parent in list(model.modules()):
        if isinstance(parent, DeformableDownsampling):
            parent.exports_kernel = deform_conv
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(parent, name, AveragePool(child))
            elif type(child) in (ShiftWindowMSA, SegShiftWindowMSA):
                setattr(parent, name, WindowAttention(child))
    return model


class AveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products.

    PyTorch exports the original without an error, but the result is wrong at sizes other than the
    traced one.

    Args:
        pool: The module to replace.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.output_size: tuple[int | None, int | None] = _pair(pool.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Average ``(B, C, H, W)`` over a grid of ``output_size`` cells."""
        rows, cols = (
            self._weights(side, cells or side, x)
            for side, cells in zip(x.shape[-2:], self.output_size, strict=True)
        )
        return rows @ x @ cols.T

    @staticmethod
    def _weights(side: int, cells: int, like: Tensor) -> Tensor:
        """Return the weight of every pixel in the mean of every cell: ``(cells, side)``."""
        cell = torch.arange(cells, device=like.device).unsqueeze(1)
        pixel = torch.arange(side, device=like.device)
        first, last = cell * side // cells, ((cell + 1) * side - 1) // cells
        inside = ((pixel >= first) & (pixel <= last)).to(like.dtype)
        return inside / (last - first + 1)


class WindowAttention(nn.Module):
    """``ShiftWindowMSA``, the shifted window attention of mmdet's and mmseg's Swin.

    Args:
        attention: The module to replace.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.side = cast(int, attention.window_size)
        self.shift = cast(int, attention.shift_size)
        self.attention = cast(nn.Module, attention.w_msa)
        self.drop = cast(nn.Module, attention.drop)

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Attend within windows: tokens ``(B, H·W, C)`` of a map ``(H, W)`` to as many tokens."""
        batch, _, channels = query.shape
        height, width = hw_shape
        side, shift = self.side, self.shift
        rows, cols = ((length + side - 1) // side for length in (height, width))
        x = query.view(batch, height, width, channels)
        x = F.pad(x, (0, 0, 0, cols * side - width, 0, rows * side - height))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = x.reshape(batch, rows, side, cols, side, channels).transpose(2, 3)
        x = x.reshape(batch * rows * cols, side * side, channels)
        x = self.attention(x, self._mask(rows, cols, x) if shift else None)
        x = x.reshape(batch, rows, cols, side, side, channels).transpose(2, 3)
        x = x.reshape(batch, rows * side, cols * side, channels)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        # Negative padding crops: unlike a slice, its size is exact during tracing.
        x = F.pad(x, (0, 0, 0, width - cols * side, 0, height - rows * side))
        return self.drop(x.reshape(batch, height * width, channels))

    def _mask(self, rows: int, cols: int, like: Tensor) -> Tensor:
        """Return the mask ``(rows·cols, side², side²)`` that is added to the logits.

        In the last windows, rolling brings the first tokens of the map beside the last ones.
        """
        regions = [
            (position >= (count - 1) * self.side).long()
            + (position >= count * self.side - self.shift).long()
            for count in (rows, cols)
            for position in [torch.arange(count * self.side, device=like.device)]
        ]
        region = 3 * regions[0].unsqueeze(1) + regions[1]
        region = region.reshape(rows, self.side, cols, self.side).transpose(1, 2)
        region = region.reshape(rows * cols, self.side * self.side)
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return apart.to(like.dtype) * MASKED
