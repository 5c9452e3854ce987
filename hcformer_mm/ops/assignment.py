"""Soft assignment of fine pixels to coarse cells: eq. (3) in a 3×3 neighbourhood."""

import torch
from torch import Tensor

from .neighbourhood import (
    NUM_CANDIDATES,
    channels_first,
    channels_last,
    coarse_size,
    merge_windows,
    outside,
    shifted,
    windows,
)

SCALE_EPS = 1e-8
"""Added to ``|scale|``, so that a scale of zero is the hard assignment of eq. (2), not a NaN."""


def soft_assign(fine: Tensor, coarse: Tensor, scale: Tensor | float) -> Tensor:
    r"""Assign every fine pixel softly to the 3×3 coarse cells around its parent, eq. (3).

    .. math:: A = \mathrm{Softmax}_\mathrm{row}(F^\top F_d \,/\, |s|)

    The parent of pixel ``(y, x)`` is the cell ``(y // 2, x // 2)``; the candidates are row-major. A
    candidate outside the coarse map has the weight 0, whatever the features are. Similarities and
    softmax are computed in float32 at least: divided by a small scale, the rounding of half
    precision would change assignments.

    Args:
        fine: Features before downsampling, ``(B, C, H, W)``, of unit norm over C, any H, W ≥ 1.
        coarse: Features after downsampling, ``(B, C, ⌈H/2⌉, ⌈W/2⌉)``, of unit norm over C.
        scale: The scale s; a number or a tensor of one element.

    Returns:
        The assignment ``(B, 9, H, W)`` in the dtype of ``fine`` and channels-last memory (a
        part of it at odd sizes). It sums to 1 over dim 1.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit each other.
    """
    _check_maps(fine, coarse)
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"expected one scale, got a tensor of shape {tuple(scale.shape)}")
    batch, channels, height, width = fine.shape
    rows, cols = coarse.shape[-2:]
    dtype = torch.promote_types(fine.dtype, torch.float32)

    with torch.autocast(fine.device.type, enabled=False):
        pixels = windows(channels_last(fine).to(dtype))  # (B, h, 2, w, 2, C)
        pixels = pixels.transpose(2, 3).reshape(batch * rows * cols, 4, channels)
        candidates = torch.stack(shifted(channels_last(coarse).to(dtype)), dim=3)
        candidates = candidates.reshape(batch * rows * cols, NUM_CANDIDATES, channels)
        logits = torch.bmm(pixels, candidates.transpose(1, 2))  # (B·h·w, 4, 9)
        magnitude = scale.to(dtype).abs() if isinstance(scale, Tensor) else abs(scale)
        logits = logits / (SCALE_EPS + magnitude)
        logits = logits.reshape(batch, rows, cols, 4, NUM_CANDIDATES)
        logits = logits.masked_fill(outside(rows, cols, fine.device).unsqueeze(2), -torch.inf)
        assignment = logits.softmax(dim=-1).to(fine.dtype)
    assignment = assignment.reshape(batch, rows, cols, 2, 2, NUM_CANDIDATES).transpose(2, 3)
    return channels_first(merge_windows(assignment, height, width))


def _check_maps(fine: Tensor, coarse: Tensor) -> None:
    for name, x in (("fine", fine), ("coarse", coarse)):
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(
                f"expected {name} features (B, C, H, W) with C, H, W >= 1, got {tuple(x.shape)}"
            )
    if fine.shape[:2] != coarse.shape[:2]:
        raise ValueError(
            "expected fine and coarse features of the same batch size and channels, "
            f"got {tuple(fine.shape)} and {tuple(coarse.shape)}"
        )
    expected = coarse_size(*fine.shape[-2:])
    if tuple(coarse.shape[-2:]) != expected:
        raise ValueError(
            f"expected coarse of (⌈H/2⌉, ⌈W/2⌉) = {expected}, got {tuple(coarse.shape[-2:])}"
        )
    if fine.dtype != coarse.dtype or fine.device != coarse.device:
        raise ValueError(
            "expected fine and coarse of one dtype and device, "
            f"got {fine.dtype} on {fine.device} and {coarse.dtype} on {coarse.device}"
        )
