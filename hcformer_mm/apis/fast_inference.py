"""What makes inference faster and leaves the results as they are."""

from itertools import pairwise

import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..models.downsampling import DeformableDownsampling


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every BatchNorm into the convolution before it, deformable ones of ours included.

    Args:
        model: A model in evaluation mode; changed in place.

    Returns:
        The model, with the same outputs up to rounding.
    """
    for parent in list(model.modules()):
        for (conv_name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, DeformableDownsampling) and isinstance(norm, _BatchNorm):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    return fuse_conv_bn(model)


def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of a model channels-last, which makes its maps so.

    Raises:
        ValueError: The model has a layer that computes wrong numbers on such maps.
    """
    for name, module in model.named_modules():
        deformable = isinstance(module, DeformConv2d | ModulatedDeformConv2d)
        if deformable and not isinstance(module, DeformableDownsampling):
            raise ValueError(
                "expected no deformable convolution of mmcv, which reads any memory as contiguous "
                f"on a CPU, got {name!r} of {type(model).__name__}; leave out channels-last"
            )
    return model.to(memory_format=torch.channels_last)
