"""Decoding of coarse masks at sampled points only: eq. (5) without the whole map."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .decoding import check_step, decode_hierarchy
from .linear_taps import linear_taps
from .neighborhood import channels_last, pad_border
from .precision import full_precision

# A point lies between 2×2 pixels; their parents are among 2×2 cells, their candidates among 4×4.
_SIDE = 4


def decode_points(masks: Tensor, assignments: Sequence[Tensor], points: Tensor) -> Tensor:
    r"""Decode masks and sample them bilinearly at points.

    Equivalent to sampling the result of :func:`~hcformer_mm.ops.decode_hierarchy` with zeros
    outside the map. Decoding and sampling are linear, so the finest level, three quarters of the
    cost, is decoded at the points only: a point mixes 4×4 cells.

    Args:
        masks: Masks of the coarsest cells, ``(B, Q, h, w)``.
        assignments: One assignment ``(B, 9, H_i, W_i)`` per level, **finest first**; may be empty.
        points: Coordinates ``(B, P, 2)``, x before y; 0 and 1 are the borders of the map. Pixels
            are located in float32 or wider, whatever the dtype of the masks is.

    Returns:
        Decoded values ``(B, Q, P)`` in the widest dtype of the masks and the assignments.

    Raises:
        ValueError: Shapes of adjacent levels do not match, or the points are not ``(B, P, 2)``.

    Example:
        >>> assignments = [torch.full((1, 9, 6, 8), 1 / 9), torch.full((1, 9, 3, 4), 1 / 9)]
        >>> decode_points(torch.randn(1, 20, 2, 2), assignments, torch.rand(1, 100, 2)).shape
        torch.Size([1, 20, 100])
    """
    if points.dim() != 3 or points.shape[0] != masks.shape[0] or points.shape[2] != 2:
        raise ValueError(
            f"expected points (B, P, 2) of {masks.shape[0]} images, got {tuple(points.shape)}"
        )
    points = full_precision(points)
    if not assignments:
        # Sampling takes one dtype for places and values.
        maps = full_precision(masks)
        grid = (2 * points - 1).to(maps.dtype).unsqueeze(2)
        return F.grid_sample(maps, grid, align_corners=False).squeeze(3).to(masks.dtype)
    cells = decode_hierarchy(masks, assignments[1:])
    check_step(cells, assignments[0])
    dtype = torch.promote_types(cells.dtype, assignments[0].dtype)
    table = full_precision(pad_border(channels_last(cells).to(dtype)))
    index, weights = _cells_around(assignments[0], points, *table.shape[1:3])
    values = F.embedding_bag(
        index.flatten(0, 1),
        table.flatten(0, 2),
        per_sample_weights=weights.flatten(0, 1).to(table.dtype),
        mode="sum",
    )
    return values.view(*points.shape[:2], masks.shape[1]).transpose(1, 2).to(dtype)


def _cells_around(
    assignment: Tensor, points: Tensor, rows: int, cols: int
) -> tuple[Tensor, Tensor]:
    """Flat index ``(B, P, 16)`` and weight of the 4×4 padded cells that every point may mix.

    The padded map of cells has ``rows × cols``.
    """
    height, width = assignment.shape[-2:]
    x, y = points.unbind(dim=-1)
    x, y = x * width - 0.5, y * height - 0.5
    x_pixels, x_weights = linear_taps(x, width)
    y_pixels, y_weights = linear_taps(y, height)
    image = torch.arange(len(points), device=points.device).view(-1, 1, 1, 1)
    pixels = (image * height + y_pixels.unsqueeze(-1)) * width + x_pixels.unsqueeze(-2)
    bilinear = y_weights.unsqueeze(-1) * x_weights.unsqueeze(-2)  # (B, P, 2, 2)
    shares = channels_last(assignment).flatten(0, 2)[pixels]  # (B, P, 2, 2, 9)
    shares = shares * bilinear.unsqueeze(-1)

    # The top left of the 4×4 cells is the first candidate of the top left pixel.
    step = torch.arange(_SIDE, device=points.device)
    y_first = (y.floor().long().unsqueeze(-1) + step[:2]) // 2
    x_first = (x.floor().long().unsqueeze(-1) + step[:2]) // 2
    top, left = y_first[..., :1], x_first[..., :1]
    down, right = y_first - top, x_first - left
    slot = (down[..., :, None, None, None] + step[:3, None]) * _SIDE
    slot = slot + right[..., None, :, None, None] + step[:3]  # (B, P, 2, 2, 3, 3)
    weights = shares.new_zeros(*points.shape[:2], _SIDE**2)
    weights = weights.scatter_add(2, slot.flatten(2), shares.flatten(2))

    # Cells beyond the border have no weight.
    y_cells, x_cells = (top + step).clamp(0, rows - 1), (left + step).clamp(0, cols - 1)
    index = (image * rows + y_cells.unsqueeze(-1)) * cols + x_cells.unsqueeze(-2)
    return index.flatten(2), weights
