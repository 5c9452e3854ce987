"""Modulated deformable convolution (DCNv2) on channels-last maps, for devices without a kernel.

The host's operator has a fast kernel for GPUs; on CPUs it samples scalar by scalar. Here sampling
is one weighted sum of rows (a pixel's channels lie together), and the rest one matrix product.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch 2.6 and older cannot tell an export from a compilation; what serves both is slower.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether a model is being exported, to run without PyTorch's kernels or the host's."""


def modulated_deform_conv2d(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
) -> Tensor:
    """Convolve with a kernel whose taps are moved and weighted at every place.

    A tap reads the map by bilinear interpolation between the four pixels around it; pixels outside
    the map count as 0. Same semantics as ``mmcv.ops.modulated_deform_conv2d`` with one group.

    Args:
        x: Map ``(B, C, H, W)``.
        offset: Offsets ``(B, 2·k², H', W')`` in pixels: y and x of each tap in turn, row-major.
        mask: Modulation ``(B, k², H', W')``.
        weight: Kernel ``(C', C, k, k)``.
        bias: Bias ``(C')``.
        stride: Stride of the kernel, in pixels.
        padding: Zeros around the map, in pixels.

    Returns:
        Map ``(B, C', H', W')`` in channels-last memory.

    Raises:
        ValueError: The shapes of offset and mask do not fit the kernel and the map.
    """
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    for name, tensor, per_tap in (("offset", offset, 2), ("mask", mask, 1)):
        expected = (batch, per_tap * kernel**2, rows, cols)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"expected {name} of {expected}, got {tuple(tensor.shape)}")
    pixels, weights = _bilinear_taps(offset, mask, (height, width), kernel, stride, padding)
    samples = _weighted_sums(x.permute(0, 2, 3, 1).reshape(-1, channels), pixels, weights)
    samples = samples.view(batch * rows * cols, kernel**2 * channels)
    matrix = weight.permute(2, 3, 1, 0).reshape(kernel**2 * channels, -1)
    y = samples @ matrix if bias is None else torch.addmm(bias, samples, matrix)
    return y.view(batch, rows, cols, -1).permute(0, 3, 1, 2)


def _weighted_sums(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of four rows each: rows ``(N, C)``, index and weights ``(M, 4)`` → ``(M, C)``.

    A model that is exported reads rows and multiplies matrices, which runtimes of other makers have
    operators for.
    """
    if is_exporting():
        return torch.bmm(weights.unsqueeze(1), F.embedding(index, rows)).squeeze(1)
    return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")


def _bilinear_taps(
    offset: Tensor, mask: Tensor, size: tuple[int, int], kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """The four pixels around every tap, as rows of the flattened map, and their weights.

    Both are ``(B·H'·W'·k², 4)``.
    """
    batch, _, rows, cols = offset.shape
    height, width = size
    taps = torch.arange(kernel, device=offset.device)
    offset = offset.permute(0, 2, 3, 1).reshape(batch, rows, cols, kernel, kernel, 2)
    mask = mask.permute(0, 2, 3, 1).reshape(batch, rows, cols, kernel, kernel)
    y = torch.arange(rows, device=offset.device) * stride - padding
    x = torch.arange(cols, device=offset.device) * stride - padding
    y_index, y_weight = _two_pixels(y[:, None, None, None] + taps[:, None], offset[..., 0], height)
    x_index, x_weight = _two_pixels(x[:, None, None] + taps, offset[..., 1], width)
    weights = y_weight[..., :, None] * x_weight[..., None, :] * mask[..., None, None]
    pixels = y_index[..., :, None] * width + x_index[..., None, :]
    first = torch.arange(batch, device=offset.device) * (height * width)
    pixels = pixels + first.view(batch, 1, 1, 1, 1, 1, 1)
    return pixels.reshape(-1, 4), weights.reshape(-1, 4)


def _two_pixels(base: Tensor, offset: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The two pixels around a position on one axis, and their linear weights, in a new last dim."""
    position = base + offset
    lower = position.floor()
    fraction = position - lower
    index = torch.stack((lower, lower + 1), dim=-1)
    weight = torch.stack((1 - fraction, fraction), dim=-1)
    # A tap one pixel outside counts as outside, where an undeformed kernel over the padding starts:
    # the derivative of its weights has a kink there, and this side of it is the host's.
    inside = (index >= 0) & (index <= side - 1) & (position > -1).unsqueeze(-1)
    return index.clamp(0, side - 1).long(), weight * inside
