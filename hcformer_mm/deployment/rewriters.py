"""Forms of the hosts' modules that can be exported for images of any size.

The hosts compute sizes of windows and cells from those of the map, and decide by them what to do.
While a model is exported, sizes are symbols, and such a decision holds for the traced size alone.
Here every size is a multiple of a number of windows or cells, and nothing is decided.
"""

from copy import deepcopy
from typing import cast

import torch
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmseg.models.backbones.swin import ShiftWindowMSA as SegShiftWindowMSA
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

MASKED = -100.0
"""What the hosts add to the logits of a pair of tokens that must not see each other."""


def portable(model: nn.Module) -> nn.Module:
    """A copy of a model with the modules of this file in the place of those of the hosts.

    Args:
        model: A model in evaluation mode; it is not changed.

    Returns:
        The copy, with the same outputs up to rounding.
    """
    model = deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(parent, name, AveragePool(child))
            elif type(child) in (ShiftWindowMSA, SegShiftWindowMSA):
                setattr(parent, name, WindowAttention(child))
    return model


class AveragePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products.

    PyTorch's own export of it is wrong, without an error, at other sizes than the traced one.

    Args:
        pool: The module to replace.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.output_size: tuple[int | None, int | None] = _pair(pool.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Average ``(B, C, H, W)`` over a grid of ``output_size`` parts."""
        rows, cols = (
            self._weights(side, parts or side, x)
            for side, parts in zip(x.shape[-2:], self.output_size, strict=True)
        )
        return rows @ x @ cols.T

    @staticmethod
    def _weights(side: int, parts: int, like: Tensor) -> Tensor:
        """Which share each of ``side`` pixels has in each part: ``(parts, side)``."""
        part = torch.arange(parts, device=like.device).unsqueeze(1)
        pixel = torch.arange(side, device=like.device)
        first, last = part * side // parts, ((part + 1) * side - 1) // parts
        inside = ((pixel >= first) & (pixel <= last)).to(like.dtype)
        return inside / (last - first + 1)


class WindowAttention(nn.Module):
    """The shifted window attention of the hosts' Swin.

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
        """Attend within windows.

        Args:
            query: Tokens ``(B, H·W, C)``.
            hw_shape: ``(H, W)``.

        Returns:
            Tokens ``(B, H·W, C)``.
        """
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
        return self.drop(x[:, :height, :width].reshape(batch, height * width, channels))

    def _mask(self, rows: int, cols: int, like: Tensor) -> Tensor:
        """Added to the logits ``(rows·cols, side², side²)``: the last windows hold shifted tokens.

        Rolling has brought the first tokens of the map beside the last ones, which are no
        neighbors of theirs.
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
