"""One random image for a model of mmdet or mmseg."""

from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample


def random_image(model: BaseModel, shape: tuple[int, int], *, seed: int = 0) -> dict[str, Any]:
    """Batch of one random image, as a data loader hands it to ``model.data_preprocessor``.

    Args:
        model: A detector or segmentor; the type of the data sample depends on it.
        shape: Height and width of the image in pixels; also recorded as its original size.
        seed: Seed of the image, which does not depend on the model.

    Returns:
        ``inputs``, a list of one uint8 image ``(3, H, W)``, and ``data_samples``.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
    sample_type = SegDataSample if isinstance(model, BaseSegmentor) else DetDataSample
    sample = sample_type(
        metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1, 1))
    )
    return dict(inputs=[image], data_samples=[sample])
