"""Modulated deformable convolution (DCNv2) on channels-last maps, for devices without a kernel.

mmcv's operator has a fast kernel for GPUs; on CPUs it samples one number at a time. Here sampling
is a weighted sum of rows (the channels of a pixel), followed by one matrix product.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear_taps import linear_taps
from .precision import full_precision

# PyTorch 2.6 and older cannot tell export from compilation: the code for export then runs in both.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
"""Whether a model is being exported, to run without the kernels of PyTorch and mmcv."""


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
    """Convolve with a kernel whose taps are moved and modulated at every position.

    A tap interpolates bilinearly between the four pixels around it; pixels outside the map are 0.
    Equivalent to ``mmcv.ops.modulated_deform_conv2d`` with one group. Positions are computed in
    float32 or wider: half precision would move taps by whole pixels on large maps.

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
        ValueError: The shapes of offset and mask do not match the kernel and the map.
    """
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    for name, tensor, per_tap in (("offset", offset, 2), ("mask", mask, 1)):
        expected = (batch, per_tap * kernel**2, rows, cols)
        if tuple(tensor.shape) != expected:
            raise ValueError(f"expected {name} of {expected}, got {tuple(tensor.shape)}")
    pixels, weights = _bilinear_taps(offset, mask, (height, width), kernel, stride, padding)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    samples = _weighted_sums(table, pixels, weights.to(x.dtype))
    samples = samples.view(batch * rows * cols, kernel**2 * channels)
    matrix = weight.permute(2, 3, 1, 0).reshape(kernel**2 * channels, -1)
    y = samples @ matrix if bias is None else torch.addmm(bias, samples, matrix)
    return y.view(batch, rows, cols, -1).permute(0, 3, 1, 2)


def _weighted_sums(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of four rows each: rows ``(N, C)``, index and weights ``(M, 4)`` → ``(M, C)``.

    Exported models gather rows and multiply matrices, since other runtimes lack ``embedding_bag``.
    """
    if is_exporting():
        return torch.bmm(weights.unsqueeze(1), F.embedding(index, rows)).squeeze(1)
    return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")


def _bilinear_taps(
    offset: Tensor, mask: Tensor, size: tuple[int, int], kernel: int, stride: int, padding: int
) -> tuple[Tensor, Tensor]:
    """Row index in the flattened map and weight of the four pixels around every tap.

    Both are ``(B·H'·W'·k², 4)``.
    """
    batch, _, rows, cols = offset.shape
    height, width = size
    offset = full_precision(offset)
    taps = torch.arange(kernel, device=offset.device)
    offset = offset.permute(0, 2, 3, 1).reshape(batch, rows, cols, kernel, kernel, 2)
    mask = mask.permute(0, 2, 3, 1).reshape(batch, rows, cols, kernel, kernel)
    y = torch.arange(rows, device=offset.device) * stride - padding
    x = torch.arange(cols, device=offset.device) * stride - padding
    y_position = y[:, None, None, None] + taps[:, None] + offset[..., 0]
    x_position = x[:, None, None] + taps + offset[..., 1]
    y_index, y_weight = linear_taps(y_position, height)
    x_index, x_weight = linear_taps(x_position, width)
    weights = y_weight[..., :, None] * x_weight[..., None, :] * mask[..., None, None]
    pixels = y_index[..., :, None] * width + x_index[..., None, :]
    first = torch.arange(batch, device=offset.device) * (height * width)
    pixels = pixels + first.view(batch, 1, 1, 1, 1, 1, 1)
    return pixels.reshape(-1, 4), weights.reshape(-1, 4)
