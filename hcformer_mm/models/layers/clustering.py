"""The clustering module: the parameters of ``ops.soft_assign_maps``."""

import math

import torch
from torch import Tensor, nn

from ...ops import FeatureProjection, soft_assign_maps


class ClusteringModule(nn.Module):
    r"""Assign the pixels before a downsampling to the cells after it (paper, Sec. 2.2, Fig. 2).

    Each map goes through layer normalization over its channels and a 1×1 convolution without bias;
    the features are normalized to unit length, so that the inner product in eq. (3) is the cosine
    similarity. The scale :math:`s` is learned.

    The computation runs in float32 even under autocast: training makes the scale small, and
    half-precision features would then be assigned to other cells.

    Args:
        fine_channels: Channels of the map before downsampling.
        coarse_channels: Channels of the map after downsampling.
        embed_channels: Channels :math:`C_F` of the space in which similarities are taken.
        init_scale: Initial value of :math:`s`.

    Raises:
        ValueError: ``embed_channels`` is less than 1, or ``init_scale`` is not finite.
    """

    def __init__(
        self,
        fine_channels: int,
        coarse_channels: int,
        embed_channels: int = 128,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
        if embed_channels < 1 or not math.isfinite(init_scale):
            raise ValueError(
                "expected embed_channels >= 1 and a finite init_scale, got "
                f"{embed_channels} and {init_scale}"
            )
        self.fine_norm = nn.LayerNorm(fine_channels)
        self.coarse_norm = nn.LayerNorm(coarse_channels)
        self.fine_proj = nn.Conv2d(fine_channels, embed_channels, 1, bias=False)
        self.coarse_proj = nn.Conv2d(coarse_channels, embed_channels, 1, bias=False)
        self.scale = nn.Parameter(torch.full((1,), float(init_scale)))
        for projection in (self.fine_proj, self.coarse_proj):
            nn.init.xavier_normal_(projection.weight)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Compute the assignment of eq. (3).

        Args:
            fine: Map before downsampling, ``(B, fine_channels, H, W)``.
            coarse: Map after downsampling, ``(B, coarse_channels, ⌈H/2⌉, ⌈W/2⌉)``.

        Returns:
            Assignment ``(B, 9, H, W)``; float32, or float64 for float64 parameters.

        Raises:
            ValueError: The maps do not have these shapes.
        """
        return soft_assign_maps(
            fine,
            coarse,
            self.scale,
            _projection(self.fine_norm, self.fine_proj),
            _projection(self.coarse_norm, self.coarse_proj),
        )


def _projection(norm: nn.LayerNorm, projection: nn.Conv2d) -> FeatureProjection:
    return FeatureProjection(norm.weight, norm.bias, projection.weight.flatten(1), norm.eps)
