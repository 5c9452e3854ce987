"""Decoding of coarse masks at points alone: what eq. (5) says of a place, not of the whole map."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .decoding import check_step, decode_hierarchy
from .neighborhood import channels_last

# A point lies between 2×2 pixels, whose parents lie in 2×2 cells, whose neighbors lie in 4×4.
_SIDE = 4


def decode_points(masks: Tensor, assignments: Sequence[Tensor], points: Tensor) -> Tensor:
    r"""Decode masks and read them at points, without decoding them everywhere.

    The same as reading :func:`~hcformer_mm.ops.decode_hierarchy` bilinearly at the points, which
    are zero outside the map. Both steps are linear, so that of the finest level, which costs three
    quarters of the whole, is taken at the points alone: a point mixes 4×4 cells.

    Args:
        masks: Masks of the coarsest cells, ``(B, Q, h, w)``.
        assignments: One assignment ``(B, 9, H_i, W_i)`` per level, **finest first**; may be empty.
        points: Places ``(B, P, 2)``, x before y; 0 and 1 are the borders of the map.

    Returns:
        ``(B, Q, P)``.

    Raises:
        ValueError: A level does not fit the level above it, or the points are not ``(B, P, 2)``.
    """
    if points.dim() != 3 or points.shape[0] != masks.shape[0] or points.shape[2] != 2:
        raise ValueError(
            f"expected points (B, P, 2) of {masks.shape[0]} images, got {tuple(points.shape)}"
        )
    if not assignments:
        grid = (2 * points - 1).to(masks.dtype).unsqueeze(2)
        return F.grid_sample(masks, grid, align_corners=False).squeeze(3)
    cells = decode_hierarchy(masks, assignments[1:])
    check_step(cells, assignments[0])
    batch, channels, rows, cols = cells.shape
    dtype = torch.promote_types(cells.dtype, assignments[0].dtype)
    index, weights = _cells_around(assignments[0].to(dtype), points, (rows, cols))
    first = torch.arange(batch, device=index.device).view(-1, 1, 1) * (rows * cols)
    table = channels_last(cells).to(dtype).flatten(0, 2)
    values = F.embedding_bag(
        (index + first).flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    return values.view(batch, points.shape[1], channels).transpose(1, 2)


def _cells_around(
    assignment: Tensor, points: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The 4×4 cells that every point may mix, and their weights.

    Args:
        assignment: ``(B, 9, H, W)``.
        points: ``(B, P, 2)``.
        size: Height and width of the map of cells.

    Returns:
        Index into the flat map of cells, ``(B, P, 16)``, and weights, ``(B, P, 16)``.
    """
    batch, _, height, width = assignment.shape
    number = points.shape[1]
    x, x_pixels, x_share = _pixels_around(points[..., 0], width, assignment.dtype)
    y, y_pixels, y_share = _pixels_around(points[..., 1], height, assignment.dtype)
    pixels = y_pixels[..., :, None] * width + x_pixels[..., None, :]  # (B, P, 2, 2)
    share = y_share[..., :, None] * x_share[..., None, :]
    first = torch.arange(batch, device=points.device).view(-1, 1, 1, 1) * (height * width)
    of_pixels = channels_last(assignment).flatten(0, 2)[pixels + first]  # (B, P, 2, 2, 9)
    of_pixels = of_pixels * share.unsqueeze(-1)

    # The upper left of the 4×4 cells is the first candidate of the upper left pixel.
    top, left = y.div(2, rounding_mode="floor") - 1, x.div(2, rounding_mode="floor") - 1
    step = torch.arange(2, device=points.device)
    down = (y.unsqueeze(-1) + step).div(2, rounding_mode="floor") - 1 - top.unsqueeze(-1)
    right = (x.unsqueeze(-1) + step).div(2, rounding_mode="floor") - 1 - left.unsqueeze(-1)
    candidate = torch.arange(3, device=points.device)
    slot = (down[..., :, None, None, None] + candidate[:, None]) * _SIDE
    slot = slot + right[..., None, :, None, None] + candidate  # (B, P, 2, 2, 3, 3)
    weights = of_pixels.new_zeros(batch, number, _SIDE**2)
    weights = weights.scatter_add(2, slot.flatten(2), of_pixels.flatten(2))

    reach = torch.arange(_SIDE, device=points.device)
    rows, cols = top.unsqueeze(-1) + reach, left.unsqueeze(-1) + reach  # (B, P, 4)
    inside = ((rows >= 0) & (rows < size[0]))[..., :, None]
    inside = inside & ((cols >= 0) & (cols < size[1]))[..., None, :]
    rows, cols = rows.clamp(0, size[0] - 1), cols.clamp(0, size[1] - 1)
    index = rows[..., :, None] * size[1] + cols[..., None, :]
    return index.flatten(2), weights * inside.flatten(2)


def _pixels_around(position: Tensor, side: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Along one axis: the first of two pixels around each place, both as valid pixels, their share.

    The share of a pixel outside the map is zero.
    """
    position = position.to(dtype) * side - 0.5
    first = position.floor()
    fraction = position - first
    pixels = torch.stack((first, first + 1), dim=-1)
    share = torch.stack((1 - fraction, fraction), dim=-1)
    share = share * ((pixels >= 0) & (pixels <= side - 1))
    return first.long(), pixels.clamp(0, side - 1).long(), share
