"""The clustering module: norms, projections and scale around ``ops.soft_assign``."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..ops import soft_assign
from ..ops.neighbourhood import channels_first, channels_last


class ClusteringModule(nn.Module):
    r"""Cluster the pixels before a downsampling around those after it (paper, Sec. 2.2, Fig. 2).

    Each map goes through layer normalisation over its channels and a 1×1 convolution without bias;
    the features are normalised to unit length, so that the inner product in eq. (3) is the cosine
    similarity. The scale :math:`s` is learnt.

    The module computes in float32 under autocast too: similarities are divided by a scale that
    training makes small, and half-precision features would then choose other clusters.

    Args:
        fine_channels: Channels of the map before downsampling.
        coarse_channels: Channels of the map after downsampling.
        embed_channels: Channels :math:`C_F` of the space in which similarities are taken.
        init_scale: Initial value of :math:`s`.
    """

    def __init__(
        self,
        fine_channels: int,
        coarse_channels: int,
        embed_channels: int = 128,
        init_scale: float = 0.1,
    ) -> None:
        super().__init__()
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
        with torch.autocast(fine.device.type, enabled=False):
            return soft_assign(
                self._embed(fine, self.fine_norm, self.fine_proj),
                self._embed(coarse, self.coarse_norm, self.coarse_proj),
                self.scale,
            )

    @staticmethod
    def _embed(x: Tensor, norm: nn.LayerNorm, projection: nn.Conv2d) -> Tensor:
        if x.dim() != 4 or x.shape[1] != projection.in_channels:
            raise ValueError(
                f"expected a map (B, {projection.in_channels}, H, W), got {tuple(x.shape)}"
            )
        pixels = norm(channels_last(x).to(projection.weight.dtype))  # (B, H, W, C)
        # On channels-last memory the 1×1 convolution is one matrix product over all pixels.
        pixels = F.linear(pixels, projection.weight.flatten(1))
        return channels_first(F.normalize(pixels, dim=-1))
