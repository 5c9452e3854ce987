r"""The three products between fine pixels and the 3×3 cells around their parents.

Let :math:`A` be the matrix with the nine weights of every pixel in its row:

- :func:`neighborhood_av` is :math:`A V`: decoding, eq. (5), and the gradient of the other two with
  respect to pixels;
- :func:`neighborhood_av_transpose` is :math:`A^\top P`: the gradient of eqs. (3) and (5) with
  respect to cells;
- :func:`neighborhood_qk` is :math:`Q K^\top` where :math:`A` has entries: the similarities of
  eq. (3), and the gradient of eq. (5) with respect to the assignment.

The gradients of each product are the other two, so gradients of any order cost as little as the
products, and autograd saves only the operands.

Tensors are channels-last: pixels ``(B, H, W, C)``, weights ``(B, H, W, 9)``, and cells padded by
:func:`~hcformer_mm.ops.neighborhood.pad_border`, ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.
:func:`neighborhood_av_transpose` fills the border with the sums for candidates out of bounds.

Each product has two forms. On CPUs, ``embedding_bag`` sums weighted rows of a table: it reads the
channels of a cell in place and accumulates in registers, and only the row indices are temporary. On
other devices, and in models that are traced, compiled or exported, nine shifted maps are used.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import is_eager_cpu, row_bands
from .neighborhood import (
    NUM_CANDIDATES,
    candidate_rows,
    coarse_size,
    group_by_parent,
    shift_neighbors,
    ungroup,
)

INDEX_NUMEL = 2**15
"""Number of row indices that are computed at a time."""


def neighborhood_av(cells: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the nine candidates of every pixel: eq. (5).

    Args:
        cells: Padded cells ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.
        weights: ``(B, H, W, 9)``, of the same dtype.

    Returns:
        Pixels ``(B, H, W, C)``.
    """
    return _apply("av", cells, weights)


def neighborhood_av_transpose(pixels: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum, for every cell, of the pixels that have it as a candidate.

    Args:
        pixels: ``(B, H, W, C)``.
        weights: ``(B, H, W, 9)``, of the same dtype.

    Returns:
        Padded cells ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.
    """
    return _apply("av_transpose", pixels, weights)


def neighborhood_qk(pixels: Tensor, cells: Tensor) -> Tensor:
    """Inner product of every pixel with each of its nine candidates: the similarities of eq. (3).

    Args:
        pixels: ``(B, H, W, C)``.
        cells: Padded cells ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``, of the same dtype.

    Returns:
        Similarities ``(B, H, W, 9)``.
    """
    return _apply("qk", pixels, cells)


def _apply(name: str, first: Tensor, second: Tensor) -> Tensor:
    recorded = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    # A trace has to record the operators inside the product, not the autograd function.
    if recorded and not torch.jit.is_tracing():
        return _Product.apply(name, first, second)
    return _compute(name, first, second)


class _Product(torch.autograd.Function):
    """One of the three products; its derivatives are the other two."""

    @staticmethod
    def forward(ctx: Any, name: str, first: Tensor, second: Tensor) -> Tensor:
        ctx.name = name
        _, by_first, by_second = ctx.needs_input_grad
        # The gradient with respect to one operand needs the other.
        ctx.save_for_backward(first if by_second else None, second if by_first else None)
        return _compute(name, first, second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        _, by_first, by_second = ctx.needs_input_grad
        if ctx.name == "av":
            grad_first = neighborhood_av_transpose(grad, second) if by_first else None
            grad_second = neighborhood_qk(grad, first) if by_second else None
        elif ctx.name == "av_transpose":
            grad_first = neighborhood_av(grad, second) if by_first else None
            grad_second = neighborhood_qk(first, grad) if by_second else None
        else:
            grad_first = neighborhood_av(second, grad) if by_first else None
            grad_second = neighborhood_av_transpose(first, grad) if by_second else None
        return None, grad_first, grad_second


def _compute(name: str, first: Tensor, second: Tensor) -> Tensor:
    """Compute a product in the form that suits the device, outside of autocast."""
    rows, shifted = _FORMS[name]
    with torch.autocast(first.device.type, enabled=False):
        return (rows if _by_rows(first) else shifted)(first, second)


def _by_rows(x: Tensor) -> bool:
    """Whether to use ``embedding_bag``, which rejects rows without channels."""
    return is_eager_cpu(x) and x.numel() > 0


def _av_rows(cells: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, _ = weights.shape
    table = cells.flatten(0, 2)
    index = _candidate_index(height, width, cells.shape[2])
    if batch > 1:
        first = torch.arange(batch, dtype=index.dtype).view(-1, 1, 1) * (len(table) // batch)
        index = (first + index).flatten(0, 1)
    weights = weights.reshape(-1, NUM_CANDIDATES)
    pixels = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
    return pixels.view(batch, height, width, -1)


def _qk_rows(pixels: Tensor, cells: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    products = pixels.new_empty(batch, height, width, NUM_CANDIDATES)
    bands = row_bands(height, NUM_CANDIDATES * width, INDEX_NUMEL, multiple=2)
    index = _candidate_index(bands[0].stop, width, cells.shape[2]).flatten()  # of the largest band
    first = torch.arange(0, len(index), NUM_CANDIDATES, dtype=index.dtype)
    bag = torch.arange(len(first), dtype=index.dtype).repeat_interleave(NUM_CANDIDATES)
    for rows in bands:
        count = (rows.stop - rows.start) * width
        for image in range(batch):
            # The gradient of a weighted sum with respect to its weights: inner products of rows.
            part = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                pixels[image, rows].reshape(-1, channels),
                cells[image, candidate_rows(rows)].reshape(-1, channels),
                index[: count * NUM_CANDIDATES],
                first[:count],
                bag[: count * NUM_CANDIDATES],
                mode=0,
            )
            products[image, rows] = part.view(-1, width, NUM_CANDIDATES)
    return products


def _av_transpose_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    rows, cols = (side + 2 for side in coarse_size(height, width))
    cells = pixels.new_empty(batch, rows, cols, channels)
    table = pixels.reshape(batch, -1, channels)
    flat = weights.reshape(batch, -1)
    for band in row_bands(rows, 4 * NUM_CANDIDATES * cols, INDEX_NUMEL):
        pixel_index, weight_index, invalid = _transpose_index(band, height, width)
        for image in range(batch):
            shares = flat[image].index_select(0, weight_index.flatten()).view_as(pixel_index)
            shares = shares.masked_fill_(invalid, 0)
            sums = F.embedding_bag(pixel_index, table[image], per_sample_weights=shares, mode="sum")
            cells[image, band] = sums.view(-1, cols, channels)
    return cells


def _candidate_index(height: int, width: int, cols: int) -> Tensor:
    """Flat index of every candidate in padded cells of ``cols`` columns: int32 ``(H·W, 9)``."""
    y = torch.arange(height, dtype=torch.int32) // 2
    x = torch.arange(width, dtype=torch.int32) // 2
    step = torch.arange(3, dtype=torch.int32)
    candidate = (step[:, None] * cols + step).flatten()
    return ((y[:, None] * cols + x)[..., None] + candidate).flatten(0, 1)


def _transpose_index(cell_rows: slice, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index of the 36 pixels that have a padded cell as a candidate, for the cells of some rows.

    Returns:
        Flat index of the pixels, flat index of their weights for the cell, both int32, and a mask
        of the pixels that are out of bounds; each ``(cells, 36)``.
    """
    cols = coarse_size(height, width)[1] + 2
    y, y_candidate, y_invalid = _transpose_index_1d(cell_rows, height)
    x, x_candidate, x_invalid = _transpose_index_1d(slice(0, cols), width)
    pixel = (y * width)[:, None, :, None] + x[None, :, None, :]  # (r, w + 2, 6, 6)
    weight = pixel * NUM_CANDIDATES + 3 * y_candidate[:, None] + x_candidate
    invalid = y_invalid[:, None, :, None] | x_invalid[None, :, None, :]
    return pixel.view(-1, 36), weight.view(-1, 36), invalid.view(-1, 36)


def _transpose_index_1d(cells: slice, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`_transpose_index` along one axis: pixels, offset (0 to 2) of the cell, invalid pixels.

    Returns:
        ``(cells, 6)`` clamped to the map, ``(6,)`` and bool ``(cells, 6)``.
    """
    cell = torch.arange(cells.start, cells.stop, dtype=torch.int32) - 1
    step = torch.arange(6, dtype=torch.int32)  # two pixels of each of three parents
    pixel = 2 * (cell - 1)[:, None] + step
    return pixel.clamp(0, side - 1), 2 - step // 2, (pixel < 0) | (pixel >= side)


def _av_shifted(cells: Tensor, weights: Tensor) -> Tensor:
    # Gathering the candidates for one matrix product would write the map of cells nine times.
    grouped = group_by_parent(weights)  # (B, h, 2, w, 2, 9)
    neighbors = [cell[:, :, None, :, None] for cell in shift_neighbors(cells)]
    pixels = grouped[..., :1] * neighbors[0]  # (B, h, 2, w, 2, C)
    for k in range(1, NUM_CANDIDATES):
        pixels.addcmul_(grouped[..., k : k + 1], neighbors[k])
    return ungroup(pixels, *weights.shape[1:3])


def _qk_shifted(pixels: Tensor, cells: Tensor) -> Tensor:
    candidates = torch.stack(shift_neighbors(cells), dim=3).flatten(0, 2)  # (B·h·w, 9, C)
    products = torch.bmm(_children(pixels), candidates.transpose(1, 2))
    height, width = pixels.shape[1:3]
    grouped = products.view(len(pixels), *coarse_size(height, width), 2, 2, NUM_CANDIDATES)
    return ungroup(grouped.transpose(2, 3), height, width)


def _av_transpose_shifted(pixels: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    rows, cols = coarse_size(height, width)
    sums = torch.bmm(_children(weights).transpose(1, 2), _children(pixels))  # (B·h·w, 9, C)
    sums = sums.view(batch, rows, cols, NUM_CANDIDATES, channels)
    cells = pixels.new_zeros(batch, rows + 2, cols + 2, channels)
    for k, neighbor in enumerate(shift_neighbors(cells)):
        neighbor.add_(sums[:, :, :, k])
    return cells


def _children(fine: Tensor) -> Tensor:
    """The four pixels of every cell: ``(B, H, W, C)`` → ``(B·h·w, 4, C)``."""
    return group_by_parent(fine).transpose(2, 3).flatten(3, 4).flatten(0, 2)


_FORMS = {
    "av": (_av_rows, _av_shifted),
    "av_transpose": (_av_transpose_rows, _av_transpose_shifted),
    "qk": (_qk_rows, _qk_shifted),
}
