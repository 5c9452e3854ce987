"""Linear interpolation along one axis of a map, the building block of bilinear sampling."""

import torch
from torch import Tensor


def linear_taps(position: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Index and weight of the two pixels around each position, in a new last dim.

    Args:
        position: Positions of any shape, in float32 or wider; the center of pixel i is at i.
            Half precision cannot hold every pixel: bfloat16 holds whole numbers up to 256.
        side: Number of pixels.

    Returns:
        Int64 index, clamped to the map, and weight, which is 0 for a pixel outside the map.
    """
    lower = position.floor()
    fraction = position - lower
    index = torch.stack((lower, lower + 1), dim=-1)
    weight = torch.stack((1 - fraction, fraction), dim=-1)
    # Exactly one pixel outside the map, where an undeformed kernel over the padding starts, the
    # weight has a kink; as in mmcv, the derivative there is 0, that of the outer side.
    inside = (index >= 0) & (index <= side - 1) & (position > -1).unsqueeze(-1)
    # Clamp integers: NaN, which has no place among the pixels, then only makes its own results NaN.
    return index.long().clamp(0, side - 1), weight * inside
