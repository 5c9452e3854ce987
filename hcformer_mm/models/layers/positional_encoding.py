"""Positional encodings of the cells of a map."""

import torch
from mmdet.models.layers import SinePositionalEncoding
from torch import Tensor


class GridEncoding(SinePositionalEncoding):
    """mmdet's ``SinePositionalEncoding`` for maps without padding, with equal results.

    mmdet's takes the sines of every cell; here those of rows and of columns are enough.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Encode the cells of a map.

        Args:
            x: Map ``(B, C, h, w)``; only its size is read.

        Returns:
            Encodings ``(1, h·w, 2 · num_feats)`` of the cells, row by row; float32.
        """
        rows, cols = x.shape[-2:]
        lines = torch.cat([self._lines(side, x.device) for side in (rows, cols)])
        pairs = self.num_feats // 2  # of a sine and a cosine
        wavelengths = torch.logspace(
            0, 1 - 1 / pairs, pairs, self.temperature, dtype=lines.dtype, device=lines.device
        )
        angles = lines[:, None] / wavelengths
        sines = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        of_rows = sines[:rows, None].expand(-1, cols, -1)
        of_cols = sines[None, rows:].expand(rows, -1, -1)
        return torch.cat((of_rows, of_cols), dim=-1).flatten(0, 1).unsqueeze(0)

    def _lines(self, side: int, device: torch.device) -> Tensor:
        """Positions of rows or columns, ``(side,)``."""
        lines = torch.arange(1, side + 1, dtype=torch.float32, device=device)
        if self.normalize:
            lines = (lines + self.offset) * (self.scale / (side + self.eps))
        return lines
