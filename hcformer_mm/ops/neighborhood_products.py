r"""The three products between fine pixels and the 3×3 cells around their parents.

With a matrix that holds the nine weights of every pixel in its row, they are products with that
matrix, with its transpose, and the entries of the product of two matrices that it has a place for:

- :func:`mix`: pixels from cells, :math:`A M`, which is eq. (5);
- :func:`spread`: cells from pixels, :math:`A^\top P`;
- :func:`compare`: weights from pixels and cells, :math:`P M^\top`, the similarities of eq. (3).

The derivatives of each are the other two, so that gradients of any order cost what they do, and
nothing but the operands is kept for them.

Everything is channels-last: pixels ``(B, H, W, C)``, weights ``(B, H, W, 9)``, and cells with a
border of one around them, ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``, which
:func:`~hcformer_mm.ops.neighborhood.with_border` makes. What :func:`spread` adds up in the border
are the shares of candidates that lie outside the map.

Each product has two forms. CPUs have a kernel for weighted sums of the rows of a table: it reads
the channels of a cell where they lie and keeps the sum in registers, and the only temporary tensors
are the numbers of the rows. Elsewhere, and in models that are recorded, the products are those of
shifted maps.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import is_recorded
from .neighborhood import (
    NUM_CANDIDATES,
    around_parents,
    coarse_size,
    merge_windows,
    neighbors,
    windows,
)

INDEXED = 2**15
"""Rows of a table that are looked up at a time, where they are looked up in parts."""


def mix(cells: Tensor, weights: Tensor) -> Tensor:
    """Sum, for every pixel, its nine candidates by their weights: eq. (5).

    Args:
        cells: ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``, with their border.
        weights: ``(B, H, W, 9)``, of the same dtype.

    Returns:
        Pixels ``(B, H, W, C)``.
    """
    return _Mix.apply(cells, weights) if _learns(cells, weights) else _mix(cells, weights)


def spread(pixels: Tensor, weights: Tensor) -> Tensor:
    """Sum, for every cell, the pixels that it is a candidate of, by the weights it has there.

    Args:
        pixels: ``(B, H, W, C)``.
        weights: ``(B, H, W, 9)``, of the same dtype.

    Returns:
        Cells with their border, ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``.
    """
    return _Spread.apply(pixels, weights) if _learns(pixels, weights) else _spread(pixels, weights)


def compare(pixels: Tensor, cells: Tensor) -> Tensor:
    """Inner product of every pixel with each of its nine candidates.

    Args:
        pixels: ``(B, H, W, C)``.
        cells: ``(B, ⌈H/2⌉ + 2, ⌈W/2⌉ + 2, C)``, with their border, of the same dtype.

    Returns:
        ``(B, H, W, 9)``.
    """
    return _Compare.apply(pixels, cells) if _learns(pixels, cells) else _compare(pixels, cells)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cells: Tensor, weights: Tensor) -> Tensor:
        _save(ctx, cells, weights)
        return _mix(cells, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        cells, weights = ctx.saved_tensors
        return (
            spread(grad, weights) if ctx.needs_input_grad[0] else None,
            compare(grad, cells) if ctx.needs_input_grad[1] else None,
        )


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weights: Tensor) -> Tensor:
        _save(ctx, pixels, weights)
        return _spread(pixels, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pixels, weights = ctx.saved_tensors
        return (
            mix(grad, weights) if ctx.needs_input_grad[0] else None,
            compare(pixels, grad) if ctx.needs_input_grad[1] else None,
        )


class _Compare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, cells: Tensor) -> Tensor:
        _save(ctx, pixels, cells)
        return _compare(pixels, cells)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        pixels, cells = ctx.saved_tensors
        return (
            mix(cells, grad) if ctx.needs_input_grad[0] else None,
            spread(pixels, grad) if ctx.needs_input_grad[1] else None,
        )


def _learns(*operands: Tensor) -> bool:
    """Whether derivatives of ours are needed; a trace is to show what they are derivatives of."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in operands)
    return wanted and not torch.jit.is_tracing()


def _save(ctx: Any, first: Tensor, second: Tensor) -> None:
    """Keep, of two operands, those that the derivative by the other one needs."""
    needed = ctx.needs_input_grad
    ctx.save_for_backward(first if needed[1] else None, second if needed[0] else None)


def _mix(cells: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast(cells.device.type, enabled=False):
        return (_mix_rows if _by_rows(cells) else _mix_shifted)(cells, weights)


def _spread(pixels: Tensor, weights: Tensor) -> Tensor:
    with torch.autocast(pixels.device.type, enabled=False):
        return (_spread_rows if _by_rows(pixels) else _spread_shifted)(pixels, weights)


def _compare(pixels: Tensor, cells: Tensor) -> Tensor:
    with torch.autocast(pixels.device.type, enabled=False):
        return (_compare_rows if _by_rows(pixels) else _compare_shifted)(pixels, cells)


def _by_rows(x: Tensor) -> bool:
    """Whether the kernel of CPUs serves; it refuses rows without channels.

    What is recorded is to consist of operators that others know.
    """
    return x.device.type == "cpu" and not is_recorded() and x.numel() > 0


def _mix_rows(cells: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, _ = weights.shape
    table = cells.flatten(0, 2)
    index = _candidates(height, width, cells.shape[2])
    if batch > 1:
        first = torch.arange(batch, dtype=index.dtype).view(-1, 1, 1) * (len(table) // batch)
        index = (first + index).flatten(0, 1)
    weights = weights.reshape(-1, NUM_CANDIDATES)
    pixels = F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")
    return pixels.view(batch, height, width, -1)


def _compare_rows(pixels: Tensor, cells: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    products = pixels.new_empty(batch, height, width, NUM_CANDIDATES)
    whole: Tensor | None = None
    for rows in _parts(height, NUM_CANDIDATES * width, multiple=2):
        if whole is None:  # the first part is the largest
            whole = _candidates(rows.stop, width, cells.shape[2]).flatten()
            pixel = torch.arange(len(whole) // NUM_CANDIDATES, dtype=whole.dtype)
            pixel = pixel.repeat_interleave(NUM_CANDIDATES)
            first = torch.arange(0, len(whole), NUM_CANDIDATES, dtype=whole.dtype)
        number = (rows.stop - rows.start) * width
        index = whole[: number * NUM_CANDIDATES]
        for image in range(batch):
            # The derivative of a weighted sum by its weights: inner products of rows.
            part = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                pixels[image, rows].reshape(-1, channels),
                cells[image, around_parents(rows)].reshape(-1, channels),
                *(index, first[:number], pixel[: len(index)]),
                mode=0,
            )
            products[image, rows] = part.view(-1, width, NUM_CANDIDATES)
    return products


def _spread_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    rows, cols = (side + 2 for side in coarse_size(height, width))
    cells = pixels.new_empty(batch, rows, cols, channels)
    table = pixels.reshape(batch, -1, channels)
    flat = weights.reshape(batch, -1)
    for part in _parts(rows, 4 * NUM_CANDIDATES * cols):
        pixel, share, missing = _readers(part, height, width)
        for image in range(batch):
            shares = flat[image].index_select(0, share.flatten()).view_as(pixel)
            shares = shares.masked_fill_(missing, 0)
            sums = F.embedding_bag(pixel, table[image], per_sample_weights=shares, mode="sum")
            cells[image, part] = sums.view(-1, cols, channels)
    return cells


def _parts(length: int, indexed: int, multiple: int = 1) -> Iterator[slice]:
    """Rows of a map in parts, for so many numbers of an index a row."""
    step = multiple * max(1, INDEXED // (indexed * multiple))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _candidates(height: int, width: int, cols: int) -> Tensor:
    """Number of every candidate in a flat map of cells, of ``cols`` columns with the border.

    Returns:
        ``(H·W, 9)`` int32.
    """
    y = torch.arange(height, dtype=torch.int32) // 2
    x = torch.arange(width, dtype=torch.int32) // 2
    step = torch.arange(3, dtype=torch.int32)
    candidate = (step[:, None] * cols + step).flatten()
    return ((y[:, None] * cols + x)[..., None] + candidate).flatten(0, 1)


def _readers(cell_rows: slice, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels that some rows of cells, counted with the border, are candidates of.

    Those of nine parents, four each.

    Returns:
        Numbers of the pixels in the flat map, numbers of the weights in the flat map of weights,
        both int32, and which of the pixels do not exist; each ``(cells, 36)``.
    """
    cols = coarse_size(height, width)[1] + 2
    y, y_candidate, y_missing = _readers_of_axis(cell_rows, height)
    x, x_candidate, x_missing = _readers_of_axis(slice(0, cols), width)
    pixel = (y * width)[:, None, :, None] + x[None, :, None, :]  # (r, w + 2, 6, 6)
    candidate = 3 * y_candidate[:, None] + x_candidate
    missing = y_missing[:, None, :, None] | x_missing[None, :, None, :]
    share = pixel * NUM_CANDIDATES + candidate
    return pixel.view(-1, 36), share.view(-1, 36), missing.view(-1, 36)


def _readers_of_axis(cells: slice, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: pixels that cells are candidates of, as which, and which do not exist.

    Returns:
        ``(cells, 6)``, ``(6,)`` and ``(cells, 6)``; a pixel that does not exist is replaced by one
        that does.
    """
    cell = torch.arange(cells.start, cells.stop, dtype=torch.int32) - 1
    step = torch.arange(6, dtype=torch.int32)  # two pixels of each of three parents
    pixel = 2 * (cell - 1)[:, None] + step
    missing = (pixel < 0) | (pixel >= side)
    return pixel.clamp(0, side - 1), 2 - step // 2, missing


def _mix_shifted(cells: Tensor, weights: Tensor) -> Tensor:
    # Nine shifted multiply-adds; gathering the candidates for a matrix product would first write
    # nine times the map of cells.
    grouped = windows(weights)  # (B, h, 2, w, 2, 9)
    taps = [tap[:, :, None, :, None] for tap in neighbors(cells)]
    pixels = grouped[..., :1] * taps[0]  # (B, h, 2, w, 2, C)
    for k in range(1, NUM_CANDIDATES):
        pixels.addcmul_(grouped[..., k : k + 1], taps[k])
    return merge_windows(pixels, *weights.shape[1:3])


def _compare_shifted(pixels: Tensor, cells: Tensor) -> Tensor:
    candidates = torch.stack(neighbors(cells), dim=3).flatten(0, 2)  # (B·h·w, 9, C)
    products = torch.bmm(_four_pixels(windows(pixels)), candidates.transpose(1, 2))
    height, width = pixels.shape[1:3]
    grouped = products.view(len(pixels), *coarse_size(height, width), 2, 2, NUM_CANDIDATES)
    return merge_windows(grouped.transpose(2, 3), height, width)


def _spread_shifted(pixels: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    rows, cols = coarse_size(height, width)
    shares = _four_pixels(windows(weights)).transpose(1, 2)  # (B·h·w, 9, 4)
    taps = torch.bmm(shares, _four_pixels(windows(pixels)))
    cells = pixels.new_zeros(batch, rows + 2, cols + 2, channels)
    _add_to_neighbors(cells, taps)
    return cells


def _four_pixels(grouped: Tensor) -> Tensor:
    """The pixels of every cell, as rows: ``(B, h, 2, w, 2, C)`` → ``(B·h·w, 4, C)``."""
    return grouped.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _add_to_neighbors(padded: Tensor, values: Tensor) -> None:
    """The transpose of :func:`neighbors`: add what was read where it was read.

    Args:
        padded: ``(B, h + 2, w + 2, C)``; changed in place.
        values: For every cell and candidate, ``(B·h·w, 9, C)``.
    """
    batch, rows, cols = padded.shape[0], padded.shape[1] - 2, padded.shape[2] - 2
    values = values.view(batch, rows, cols, NUM_CANDIDATES, padded.shape[3])
    for k in range(NUM_CANDIDATES):
        dy, dx = divmod(k, 3)
        padded[:, dy : dy + rows, dx : dx + cols] += values[:, :, :, k]
