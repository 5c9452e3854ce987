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

Each product has two forms. On CPUs and CUDA GPUs, ``embedding_bag`` sums weighted rows of a table:
one kernel reads the channels of a cell in place and accumulates in registers, and only the row
indices are temporary. On other devices, and in models that are traced, compiled or exported, nine
shifted maps are used.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import image_bands, is_recorded
from .neighborhood import (
    NUM_CANDIDATES,
    candidate_rows,
    coarse_size,
    group_by_parent,
    shift_neighbors,
    ungroup,
)
from .precision import autocast_off

INDEX_NUMEL = 2**15
"""Number of row indices that are computed at a time on a CPU."""
GPU_INDEX_NUMEL = 2**25
"""The same on a GPU, where a kernel counts its threads, 32 for every index, in 32 bits."""

BAG_DEVICES = ("cpu", "cuda", "meta")
"""Types of devices on which ``embedding_bag`` and its gradients have kernels."""


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
    # Autograd and vmap need the function; a trace has to record the operators inside of it.
    differentiated = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    if torch.jit.is_tracing() or (is_recorded() and not differentiated):
        return _compute(name, first, second)
    return _Product.apply(name, first, second)


class _Product(torch.autograd.Function):
    """One of the three products; its derivatives are the other two."""

    @staticmethod
    def forward(name: str, first: Tensor, second: Tensor) -> Tensor:
        return _compute(name, first, second)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[str, Tensor, Tensor], output: Tensor) -> None:
        ctx.name, first, second = inputs
        _, by_first, by_second = ctx.needs_input_grad
        # The gradient with respect to one operand needs the other.
        ctx.save_for_backward(first if by_second else None, second if by_first else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        # Every band would copy the gradient of masks that were transposed after decoding. PyTorch
        # transposes matrices faster than maps.
        grad = grad.flatten(0, 2).contiguous().view(grad.shape)
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

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[None, int | None, int | None], name: str, *operands: Tensor
    ) -> tuple[Tensor, int]:
        """Multiply all examples as one batch of images."""
        examples = info.batch_size
        first, second = (
            x.expand(examples, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(operands, in_dims[1:], strict=True)
        )
        product = _apply(name, first.flatten(0, 1), second.flatten(0, 1))
        return product.unflatten(0, first.shape[:2]), 0


def _compute(name: str, first: Tensor, second: Tensor) -> Tensor:
    """Compute a product in the form that suits the device, outside of autocast."""
    rows, shifted = _FORMS[name]
    with autocast_off(first.device.type):
        return (rows if _by_rows(first) else shifted)(first, second)


def _by_rows(x: Tensor) -> bool:
    """Whether to use ``embedding_bag``, which rejects rows without channels."""
    return x.device.type in BAG_DEVICES and not is_recorded() and x.numel() > 0


def _av_rows(cells: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, _ = weights.shape
    table = cells.flatten(0, 2)
    pixels = F.embedding_bag(
        _candidate_index(_numbers(len(table), cells.device), batch, height, width),
        table,
        per_sample_weights=weights.reshape(-1, NUM_CANDIDATES),
        mode="sum",
    )
    return pixels.view(batch, height, width, -1)


def _qk_rows(pixels: Tensor, cells: Tensor) -> Tensor:
    if pixels.dtype == torch.bfloat16 and pixels.device.type != "cpu":
        # CUDA's kernel of this gradient lacks bfloat16.
        return _qk_rows(pixels.float(), cells.float()).to(pixels.dtype)
    _, height, width, channels = pixels.shape
    places = _index_bands(pixels, height, NUM_CANDIDATES * width)
    images, rows = places[0]  # the largest
    num_pixels = images.stop * rows.stop * width
    num_cells = cells[images, candidate_rows(rows), :, 0].numel()
    numbers = _numbers(max(num_pixels, num_cells), pixels.device)
    index = _candidate_index(numbers, images.stop, rows.stop, width).flatten()
    bag = numbers[:num_pixels].repeat_interleave(NUM_CANDIDATES)
    products = []
    for images, rows in places:
        grad = pixels[images, rows].reshape(-1, channels)
        count = NUM_CANDIDATES * len(grad)
        # The gradient of a weighted sum with respect to its weights: inner products of rows.
        product = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            grad,
            cells[images, candidate_rows(rows)].reshape(-1, channels),
            index[:count],
            bag[:count],  # in place of offsets, which are not read beside the bags
            bag[:count],
            mode=0,
        )
        products.append(product)
    return _join(products, (*pixels.shape[:3], NUM_CANDIDATES))


def _av_transpose_rows(pixels: Tensor, weights: Tensor) -> Tensor:
    batch, height, width, channels = pixels.shape
    rows, cols = (side + 2 for side in coarse_size(height, width))
    shares = _transpose_shares(weights, rows, cols)
    cells = []
    for images, band in _index_bands(pixels, rows, 4 * NUM_CANDIDATES * cols):
        table = pixels[images]
        index = _transpose_index(len(table), band, height, width, pixels.device)
        sums = F.embedding_bag(
            index,
            table.reshape(-1, channels),
            per_sample_weights=shares[images, band].reshape(-1, 4 * NUM_CANDIDATES),
            mode="sum",
        )
        cells.append(sums)
    return _join(cells, (batch, rows, cols, channels))


def _index_bands(x: Tensor, rows: int, row_numel: int) -> list[tuple[slice, slice]]:
    numel = INDEX_NUMEL if x.device.type == "cpu" else GPU_INDEX_NUMEL
    return image_bands(len(x), rows, row_numel, numel)


def _join(parts: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(shape)


def _numbers(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _candidate_index(numbers: Tensor, images: int, height: int, width: int) -> Tensor:
    """Flat index of every candidate in padded cells: int32 ``(images·H·W, 9)``.

    ``numbers`` are 0, 1, … for at least every padded cell.
    """
    rows, cols = coarse_size(height, width)
    size = images, rows + 2, cols + 2
    cells = numbers[: math.prod(size)].view(size)
    # In every row the candidates are those of the first row, moved by the first cell of the row.
    row = cells[0, :3].unfold(1, 3, 1).transpose(0, 1)  # (w, 3, 3)
    row = row[:, None].expand(-1, 2, -1, -1).reshape(2 * cols, NUM_CANDIDATES)[:width]
    first = cells[:, :rows, None, :1, None].expand(-1, -1, 2, -1, -1)
    return (first + row).flatten(1, 2)[:, :height].reshape(-1, NUM_CANDIDATES)


def _transpose_index(
    images: int, cell_rows: slice, height: int, width: int, device: torch.device
) -> Tensor:
    """Flat index of the 36 pixels that have a padded cell as a candidate, for some rows of cells.

    Returns:
        Int32 ``(images·r·(⌈W/2⌉ + 2), 36)``; the nearest pixel stands for one outside the map.
    """
    cols = coarse_size(height, width)[1] + 2
    y, x = (
        torch.arange(2 * cells.start - 4, 2 * cells.stop, dtype=torch.int32, device=device)
        .clamp_(0, side - 1)
        .unfold(0, 6, 2)  # two pixels of each of three parents
        for cells, side in ((cell_rows, height), (slice(0, cols), width))
    )
    index = torch.add(x[:, None], y[:, None, :, None], alpha=width)  # (r, w + 2, 6, 6)
    if images > 1:
        first = _numbers(images, device) * (height * width)
        index = index + first.view(-1, 1, 1, 1, 1)
    return index.reshape(-1, 4 * NUM_CANDIDATES)


def _transpose_shares(weights: Tensor, rows: int, cols: int) -> Tensor:
    """Weights of the pixels of :func:`_transpose_index`, 0 outside the map.

    Returns:
        ``(B, rows, cols, 3, 2, 3, 2)``: a view of the padded weights. In dims 3 and 5 are the three
        parents, for the first of which the cell is the last candidate.
    """
    height, width = weights.shape[1:3]
    padding = (0, 0, 4, 2 * cols - width, 4, 2 * rows - height)
    weights = F.pad(weights.flip(-1), padding)
    image, y, x, candidate = weights.stride()
    return weights.as_strided(
        (len(weights), rows, cols, 3, 2, 3, 2),
        (image, 2 * y, 2 * x, 2 * y + 3 * candidate, y, 2 * x + candidate, x),
    )


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
    grouped = products.view(pixels.shape[0], *coarse_size(height, width), 2, 2, NUM_CANDIDATES)
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
