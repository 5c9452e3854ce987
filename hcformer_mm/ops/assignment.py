"""Soft assignment of fine pixels to coarse cells: eq. (3) in a 3×3 neighbourhood."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import bands, gradients_with_graph
from .embedding import Embedding, embed, embed_by_bands
from .neighbourhood import (
    BACKWARD_COPIES,
    NUM_CANDIDATES,
    add_to_neighbours,
    around,
    channels_first,
    channels_last,
    coarse_size,
    four_pixels,
    merge_windows,
    neighbours,
    outside,
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
        The assignment ``(B, 9, H, W)`` in the dtype of ``fine`` and channels-last memory. It sums
        to 1 over dim 1.

    Raises:
        ValueError: The shapes, dtypes or devices do not fit each other.
    """
    _check_maps(fine, coarse)
    if fine.shape[1] != coarse.shape[1] or fine.dtype != coarse.dtype:
        raise ValueError(
            "expected fine and coarse features of the same channels and one dtype, got "
            f"{tuple(fine.shape)} of {fine.dtype} and {tuple(coarse.shape)} of {coarse.dtype}"
        )
    return _by_bands(fine, channels_last(coarse), scale)


def soft_assign_maps(
    fine: Tensor,
    coarse: Tensor,
    scale: Tensor | float,
    fine_embedding: Embedding,
    coarse_embedding: Embedding,
) -> Tensor:
    """:func:`soft_assign` of the features that two maps are embedded to.

    Features of the fine map are made and used a band of rows at a time; there is no map of them.

    Args:
        fine: Map before downsampling, ``(B, C, H, W)``, any H, W ≥ 1.
        coarse: Map after downsampling, ``(B, C', ⌈H/2⌉, ⌈W/2⌉)``.
        scale: The scale s; a number or a tensor of one element.
        fine_embedding: Weights for C channels.
        coarse_embedding: Weights for C' channels.

    Returns:
        The assignment ``(B, 9, H, W)`` in the dtype of the weights.

    Raises:
        ValueError: The shapes or devices do not fit each other.
    """
    _check_maps(fine, coarse)
    for x, embedding in ((fine, fine_embedding), (coarse, coarse_embedding)):
        if x.shape[1] != len(embedding.weight):
            raise ValueError(
                f"expected a map (B, {len(embedding.weight)}, H, W), got {tuple(x.shape)}"
            )
    with torch.autocast(fine.device.type, enabled=False):
        cells = embed_by_bands(coarse.permute(0, 2, 3, 1), coarse_embedding)
    return _by_bands(fine, cells, scale, fine_embedding)


def _by_bands(
    fine: Tensor, cells: Tensor, scale: Tensor | float, embedding: Embedding | None = None
) -> Tensor:
    """Eq. (3) for cells ``(B, h, w, C_F)`` and a fine map ``(B, C, H, W)``, yet to be embedded."""
    if not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float64, device=fine.device)
    if scale.numel() != 1:
        raise ValueError(f"expected one scale, got a tensor of shape {tuple(scale.shape)}")
    pixels = fine.permute(0, 2, 3, 1)  # (B, H, W, C)
    padded = F.pad(cells, (0, 0, 1, 1, 1, 1))
    with torch.autocast(fine.device.type, enabled=False):
        if embedding is not None and torch.is_grad_enabled():
            # The backward pass needs the features, so they are all kept.
            pixels, embedding = embed_by_bands(pixels, embedding), None
        if torch.is_grad_enabled() and len(bands(pixels.shape, pixels.device, height=2)) > 1:
            return channels_first(_Assign.apply(pixels, padded, scale))
        return channels_first(_assign_by_bands(pixels, padded, scale, embedding))


def _assign_by_bands(
    pixels: Tensor, padded: Tensor, scale: Tensor, embedding: Embedding | None = None
) -> Tensor:
    """Eq. (3) for cells with a border around them, ``(B, h + 2, w + 2, C_F)``."""
    beyond = outside(padded.shape[1] - 2, padded.shape[2] - 2, padded.device)[None]
    parts = bands(pixels.shape, pixels.device, height=2)
    if len(parts) == 1:
        features = pixels if embedding is None else embed(pixels, embedding)
        return _assign(features, padded, scale, beyond)
    assignments = []
    for rows in parts:
        features = pixels[:, rows] if embedding is None else embed(pixels[:, rows], embedding)
        cells = _parents(rows)
        assignments.append(_assign(features, padded[:, around(cells)], scale, beyond[:, cells]))
    return torch.cat(assignments, dim=1)


def _parents(rows: slice) -> slice:
    """Rows of the parents of fine rows."""
    return slice(rows.start // 2, (rows.stop + 1) // 2)


def _assign(pixels: Tensor, padded: Tensor, scale: Tensor, beyond: Tensor) -> Tensor:
    """Eq. (3) on some rows.

    Args:
        pixels: Features ``(B, r, W, C)``.
        padded: Cells of ⌈r/2⌉ rows and those around them, ``(B, ⌈r/2⌉ + 2, w + 2, C)``.
        scale: Of one element.
        beyond: Which candidates lie outside the map, ``(1, ⌈r/2⌉, w, 9)``.

    Returns:
        ``(B, r, W, 9)``.
    """
    fine, candidates, magnitude = _operands(pixels, padded, scale)
    logits = torch.bmm(fine, candidates.transpose(1, 2)) / magnitude  # (B·⌈r/2⌉·w, 4, 9)
    logits = logits.view(len(pixels), *beyond.shape[1:3], 4, NUM_CANDIDATES)
    logits = logits.masked_fill(beyond.unsqueeze(3), -torch.inf)
    return _ungroup(logits.softmax(dim=-1).to(padded.dtype), pixels)


def _operands(pixels: Tensor, padded: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What eq. (3) multiplies and divides, in float32 at least.

    The features of the four pixels of every cell, ``(B·⌈r/2⌉·w, 4, C)``, those of its nine
    candidates, ``(B·⌈r/2⌉·w, 9, C)``, and the magnitude of the scale.
    """
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    candidates = torch.stack(neighbours(padded.to(dtype)), dim=3)
    return (
        four_pixels(windows(pixels.to(dtype))),
        candidates.flatten(0, 2),
        (SCALE_EPS + scale.abs()).to(dtype),
    )


def _ungroup(grouped: Tensor, pixels: Tensor) -> Tensor:
    """From the pixels of cells, ``(B·⌈r/2⌉·w, 4, C)``, to a map of the size of ``pixels``."""
    batch, height, width, _ = pixels.shape
    rows, cols = coarse_size(height, width)
    grouped = grouped.view(batch, rows, cols, 2, 2, grouped.shape[-1]).transpose(2, 3)
    return merge_windows(grouped, height, width)


class _Assign(torch.autograd.Function):
    """Eq. (3) band by band, forth and back; nothing is kept but the features and the assignment."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, padded: Tensor, scale: Tensor) -> Tensor:
        assignment = _assign_by_bands(pixels, padded, scale)
        ctx.save_for_backward(pixels, padded, scale, assignment)
        return assignment

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, assignment = ctx.saved_tensors
        pixels, padded, scale = inputs
        if torch.is_grad_enabled():  # somebody differentiates the gradient
            return tuple(gradients_with_graph(_assign_by_bands, inputs, ctx.needs_input_grad, grad))
        grad_pixels, grad_padded = torch.empty_like(pixels), torch.zeros_like(padded)
        grad_scale = torch.zeros_like(scale)
        for rows in bands(pixels.shape, pixels.device, height=2, copies=BACKWARD_COPIES):
            cells = around(_parents(rows))
            band = pixels[:, rows]
            fine, candidates, magnitude = _operands(band, padded[:, cells], scale)
            weights = four_pixels(windows(assignment[:, rows].to(fine.dtype)))  # (B·⌈r/2⌉·w, 4, 9)
            slope = four_pixels(windows(grad[:, rows].to(fine.dtype)))
            slope = slope - (weights * slope).sum(dim=-1, keepdim=True)
            # The logarithm of a weight is its logit, but for a constant that the slope is blind to.
            total = (slope * torch.xlogy(weights, weights)).sum()
            grad_scale -= (total / magnitude * scale.sign()).to(scale.dtype)
            slope = slope.mul_(weights).div_(magnitude)
            grad_pixels[:, rows] = _ungroup(torch.bmm(slope, candidates), band)
            taps = torch.bmm(slope.transpose(1, 2), fine)
            add_to_neighbours(grad_padded[:, cells], taps)
        return grad_pixels, grad_padded, grad_scale


def _check_maps(fine: Tensor, coarse: Tensor) -> None:
    for name, x in (("fine", fine), ("coarse", coarse)):
        if x.dim() != 4 or 0 in x.shape[1:]:
            raise ValueError(
                f"expected {name} features (B, C, H, W) with C, H, W >= 1, got {tuple(x.shape)}"
            )
    if fine.shape[0] != coarse.shape[0] or fine.device != coarse.device:
        raise ValueError(
            "expected fine and coarse of the same batch size and device, got "
            f"{tuple(fine.shape)} on {fine.device} and {tuple(coarse.shape)} on {coarse.device}"
        )
    expected = coarse_size(*fine.shape[-2:])
    if tuple(coarse.shape[-2:]) != expected:
        raise ValueError(
            f"expected coarse of (⌈H/2⌉, ⌈W/2⌉) = {expected}, got {tuple(coarse.shape[-2:])}"
        )
