"""DCNv2 in the downsampling layers of a CNN (paper, Sec. 2.5 and Appendix F.2)."""

import torch
from mmcv.cnn.bricks.wrappers import Conv2d
from mmcv.ops import ModulatedDeformConv2d, get_compiling_cuda_version
from mmcv.ops import modulated_deform_conv2d as mmcv_deform_conv2d
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from ...ops.deform_conv import is_exporting, modulated_deform_conv2d
from ...ops.precision import autocast_off, full_precision

# Types of devices on which mmcv's kernel is used.
_MMCV_KERNELS = {"npu", "mlu"}
if get_compiling_cuda_version() != "not available":
    _MMCV_KERNELS.add("cuda")

# Types of devices with an operator of torchvision, for tensors that mmcv's kernel does not take.
_TORCHVISION_KERNELS = {"cuda", "meta"}


class DeformableDownsampling(ModulatedDeformConv2d):
    """A modulated deformable convolution that replaces a plain strided one.

    The kernel keeps its name (``weight``) and values, so that pretrained checkpoints of the plain
    network load. A 3×3 convolution of equal stride predicts offsets and modulation, whatever the
    kernel size. Its weights start at zero, which gives offsets 0 and modulation 0.5.

    Args:
        conv: The convolution to replace; its weights are copied, and a bias is added.

    Attributes:
        exports_kernel: Whether exported models contain torchvision's operator, ``DeformConv`` of
            ONNX, in place of gathers and matrix products, which every runtime has.

    Raises:
        ValueError: The convolution is grouped, dilated, not square, not padded by zeros, or of a
            subclass with its own ``forward``.
    """

    exports_kernel = False

    def __init__(self, conv: nn.Conv2d) -> None:
        if not _is_plain(conv):
            raise ValueError(
                "expected a plain square convolution without groups and dilation, to make it "
                f"deformable, got {conv}; use downsampling='original'"
            )
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            stride=conv.stride[0],
            padding=conv.padding[0],
            bias=True,
        )
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.conv_offset = nn.Conv2d(
            conv.in_channels, 3 * taps, kernel_size=3, stride=self.stride, padding=1
        )
        with torch.no_grad():
            self.weight.copy_(conv.weight)
            if conv.bias is not None:
                self.bias.copy_(conv.bias)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """Zero the convolution that predicts offsets and modulation, which gives 0 and 0.5."""
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, C_in, H, W)`` to ``(B, C_out, ⌈H/2⌉, ⌈W/2⌉)`` (for a stride of two).

        A 2×2 kernel rounds down instead.
        """
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Run :meth:`forward` with other weights; MMEngine's conv-BN fusion calls it by name."""
        raw = self.conv_offset(x)
        # A kernel without overlap (2×2, as in ConvNeXt) drops the last line of an odd side.
        rows, cols = (
            (side + 2 * self.padding[0] - self.kernel_size[0]) // self.stride[0] + 1
            for side in x.shape[-2:]
        )
        raw = raw[..., :rows, :cols]
        offset, mask = raw.tensor_split([raw.shape[1] * 2 // 3], dim=1)
        mask = mask.sigmoid()
        device = x.device.type
        # mmcv's kernel reads memory, which compiled models and subclasses such as fake tensors
        # do not have.
        if device in _MMCV_KERNELS and not torch.compiler.is_compiling() and type(x) is Tensor:
            # It computes positions in the dtype of the offsets, where float16 steps by a quarter
            # of a pixel beyond 256, and reads any memory as if it were contiguous.
            x, mask = x.contiguous(), mask.contiguous()
            offset = full_precision(offset).contiguous()
            groups = self.dilation, self.groups, self.deform_groups
            return mmcv_deform_conv2d(
                x, offset, mask, weight, bias, self.stride, self.padding, *groups
            )
        with autocast_off(device):
            dtype = weight.dtype
            x, offset, mask = x.to(dtype), offset.to(dtype), mask.to(dtype)
            if not (self.exports_kernel if is_exporting() else device in _TORCHVISION_KERNELS):
                options = dict(stride=self.stride[0], padding=self.padding[0])
                return modulated_deform_conv2d(x, offset, mask, weight, bias, **options)
            # It computes positions in the dtype of all tensors, too, and knows no bfloat16.
            x, offset, weight, bias, mask = map(full_precision, (x, offset, weight, bias, mask))
            y = deform_conv2d(x, offset, weight, bias, self.stride, self.padding, mask=mask)
            return y.to(dtype)


def _is_plain(conv: nn.Conv2d) -> bool:
    # A subclass with its own forward, which pads or standardizes weights, is another operation.
    return (
        type(conv).forward in (nn.Conv2d.forward, Conv2d.forward)
        and not isinstance(conv.padding, str)
        and conv.padding_mode == "zeros"
        and all(len(set(pair)) == 1 for pair in (conv.kernel_size, conv.stride, conv.padding))
        and conv.groups == 1
        and conv.dilation == (1, 1)
    )


def make_downsampling_deformable(block: nn.Module) -> list[str]:
    """Replace every convolution of stride two inside ``block`` by a deformable one.

    A residual block has two of them: one in the main path and one in the shortcut.

    Args:
        block: A module that halves the resolution; changed in place.

    Returns:
        Names of the replaced layers.

    Raises:
        ValueError: There is no such convolution, or it cannot be made deformable.
    """
    strided = {
        name: module
        for name, module in block.named_modules()
        if name and isinstance(module, nn.Conv2d) and module.stride == (2, 2)
    }
    if not strided:
        raise ValueError(
            f"expected a convolution of stride two in {type(block).__name__}, found none; use "
            "downsampling='original' for other kinds of downsampling"
        )
    for name, conv in strided.items():
        parent, _, leaf = name.rpartition(".")
        deformable = DeformableDownsampling(conv)
        # A frozen layer has to stay frozen before DDP and the optimizer read its parameters.
        deformable.requires_grad_(conv.weight.requires_grad)
        setattr(block.get_submodule(parent), leaf, deformable)
    return list(strided)
