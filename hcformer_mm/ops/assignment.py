"""Soft assignment of fine pixels to coarse cells: eq. (3) in a 3×3 neighborhood."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .bands import bands
from .embedding import Band, Embedding, Gradients, embed
from .neighborhood import (
    NUM_CANDIDATES,
    around_parents,
    channels_first,
    channels_last,
    coarse_size,
    outside,
    parents,
    with_border,
)
from .neighborhood_products import compare, mix, spread

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
    with torch.autocast(fine.device.type, enabled=False):
        cells = with_border(channels_last(coarse))
        weights = _assign(channels_last(fine), cells, _one(scale, fine.device), _beyond(cells))
    return channels_first(weights)


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
    scale = _one(scale, fine.device)
    maps = fine.permute(0, 2, 3, 1), coarse.permute(0, 2, 3, 1)
    weights = *fine_embedding[:3], *coarse_embedding[:3]
    eps = fine_embedding.eps, coarse_embedding.eps
    banded = len(bands(maps[0], backward=True)) > 1
    with torch.autocast(fine.device.type, enabled=False):
        assign = _AssignMaps.apply if banded else _assign_maps
        return channels_first(assign(eps, *maps, scale, *weights))


def _assign(pixels: Tensor, cells: Tensor, scale: Tensor, beyond: Tensor) -> Tensor:
    """Eq. (3) for features ``(B, H, W, C)`` and ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.

    ``beyond`` says which candidates lie outside the map, ``(⌈H/2⌉, ⌈W/2⌉, 9)``.
    """
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    logits = compare(pixels.to(dtype), cells.to(dtype)) / _magnitude(scale, dtype)
    height, width = pixels.shape[1:3]
    beyond = beyond.repeat_interleave(2, 0)[:height].repeat_interleave(2, 1)[:, :width]
    return logits.masked_fill(beyond, -torch.inf).softmax(dim=-1).to(pixels.dtype)


def _magnitude(scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (SCALE_EPS + scale.abs()).to(dtype)


def _assign_maps(
    eps: tuple[float, float], fine: Tensor, coarse: Tensor, scale: Tensor, *weights: Tensor
) -> Tensor:
    """Eq. (3) for maps ``(B, H, W, C)`` and ``(B, ⌈H/2⌉, ⌈W/2⌉, C')`` that are yet to be embedded.

    By ``weights``, three for the fine and three for the coarse map.
    """
    of_fine, of_coarse = _embeddings(eps, weights)
    cells = with_border(embed(coarse, of_coarse))
    return _assign(embed(fine, of_fine), cells, scale, _beyond(cells))


def _beyond(cells: Tensor) -> Tensor:
    """Which candidates lie outside the map, ``(h, w, 9)``, for cells with a border."""
    return outside(cells.shape[1] - 2, cells.shape[2] - 2, cells.device)


def _embeddings(eps: tuple[float, float], weights: Sequence[Tensor]) -> tuple[Embedding, Embedding]:
    fine_weight, fine_bias, fine_projection, weight, bias, projection = weights
    return (
        Embedding(fine_weight, fine_bias, fine_projection, eps[0]),
        Embedding(weight, bias, projection, eps[1]),
    )


class _AssignMaps(torch.autograd.Function):
    """:func:`_assign_maps` band by band, forth and back.

    There are never more fine features than those of a band: the backward pass makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        eps: tuple[float, float],
        fine: Tensor,
        coarse: Tensor,
        scale: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        of_fine, of_coarse = _embeddings(eps, weights)
        cells = weights[0].new_empty(*coarse.shape[:3], len(of_coarse.projection))
        lengths = weights[0].new_empty(*coarse.shape[:3], 1)
        for place in bands(coarse):
            band = Band(coarse[place], of_coarse)
            cells[place], lengths[place] = band.features, band.lengths
        del band
        cells = with_border(cells)
        beyond = _beyond(cells)
        assignment = weights[0].new_empty(*fine.shape[:3], NUM_CANDIDATES)
        for images, rows in bands(fine):
            features = embed(fine[images, rows], of_fine)
            candidates = cells[images, around_parents(rows)]
            assignment[images, rows] = _assign(features, candidates, scale, beyond[parents(rows)])
        ctx.eps = eps
        ctx.save_for_backward(assignment, cells, lengths, fine, coarse, scale, *weights)
        return assignment

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        assignment, cells, lengths, *inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        with torch.autocast(grad.device.type, enabled=False):
            if torch.is_grad_enabled():  # somebody differentiates the gradient
                chosen = [x for x, needed in zip(inputs, wanted, strict=True) if needed]
                value = _assign_maps(ctx.eps, *inputs)
                found = iter(torch.autograd.grad(value, chosen, grad, create_graph=True))
                return (None, *(next(found) if needed else None for needed in wanted))
            return (None, *_gradients(ctx.eps, inputs, wanted, assignment, cells, lengths, grad))


def _gradients(
    eps: tuple[float, float],
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    assignment: Tensor,
    cells: Tensor,
    lengths: Tensor,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of :func:`_assign_maps`, for that of the assignment.

    Args:
        eps: As there.
        inputs: The maps, the scale and the six weights.
        wanted: Which of them need a gradient.
        assignment: ``(B, H, W, 9)``.
        cells: Features of the coarse map with their border.
        lengths: What these were divided by, ``(B, h, w, 1)``.
        grad: ``(B, H, W, 9)``.
    """
    fine, coarse, scale, *weights = inputs
    of_fine, of_coarse = _embeddings(eps, weights)
    fine_gradients = Gradients(fine, of_fine, (wanted[0], *wanted[3:6]))
    coarse_gradients = Gradients(coarse, of_coarse, (wanted[1], *wanted[6:9]))
    dtype = torch.promote_types(cells.dtype, torch.float32)
    magnitude = _magnitude(scale, dtype)
    grad_cells = torch.zeros_like(cells, dtype=dtype)
    grad_scale = torch.zeros_like(scale)
    for images, rows in bands(fine, backward=True):
        place, around = (images, rows), (images, around_parents(rows))
        band = Band(fine[place], of_fine)
        shares, slope = assignment[place].to(dtype), grad[place].to(dtype)
        slope = slope - (shares * slope).sum(dim=-1, keepdim=True)
        # The logarithm of a weight is its logit, but for a constant that the slope is blind to.
        total = (slope * torch.xlogy(shares, shares)).sum()
        grad_scale -= (total / magnitude * scale.sign()).to(scale.dtype)
        slope = slope.mul_(shares).div_(magnitude)
        grad_cells[around] += spread(band.features.to(dtype), slope)
        grad_features = mix(cells[around].to(dtype), slope).to(cells.dtype)
        band.backward(grad_features, place, fine_gradients)
        del band, grad_features  # before the next ones are made
    features, grad_cells = cells[:, 1:-1, 1:-1], grad_cells[:, 1:-1, 1:-1].to(cells.dtype)
    for place in bands(coarse, backward=True):
        band = Band(coarse[place], of_coarse, known=(features[place], lengths[place]))
        band.backward(grad_cells[place], place, coarse_gradients)
        del band
    grad_fine, *grad_fine_weights = fine_gradients.totals
    grad_coarse, *grad_coarse_weights = coarse_gradients.totals
    maps_and_scale = grad_fine, grad_coarse, grad_scale if wanted[2] else None
    return (*maps_and_scale, *grad_fine_weights, *grad_coarse_weights)


def _one(scale: Tensor | float, device: torch.device) -> Tensor:
    """The scale as a tensor."""
    if not isinstance(scale, Tensor):
        scale = torch.tensor(scale, dtype=torch.float64, device=device)
    if scale.numel() != 1:
        raise ValueError(f"expected one scale, got a tensor of shape {tuple(scale.shape)}")
    return scale


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
