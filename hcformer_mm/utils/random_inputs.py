"""One random image for a model of mmdet or mmseg."""

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import nn


def image_bands(model: nn.Module) -> int:
    """Number of bands of the images that a model takes.

    Returns:
        3 if a convolution takes three channels, else the channels of the first, which is the stem
        in all but a few backbones.
    """
    channels = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    return 3 if 3 in channels or not channels else channels[0]


def random_image(model: BaseModel, shape: tuple[int, int], *, seed: int = 0) -> dict[str, Any]:
    """Batch of one random image, as a data loader hands it to ``model.data_preprocessor``.

    Args:
        model: A detector or segmentor; the type of the data sample depends on it.
        shape: Height and width of the image in pixels; also recorded as its original size.
        seed: Seed of the image, which does not depend on the model.

    Returns:
        ``inputs``, a list of one uint8 image ``(bands, H, W)``, and ``data_samples``.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (image_bands(model), *shape), dtype=torch.uint8, generator=generator)
    sample_type = SegDataSample if isinstance(model, BaseSegmentor) else DetDataSample
    sample = sample_type(
        metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1, 1))
    )
    return dict(inputs=[image], data_samples=[sample])
