"""A model of mmdet or mmseg called on one random image."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample

Mode = Literal["backbone", "forward", "predict"]
"""The backbone alone; the whole network; the network between pre- and post-processing."""


MODES: tuple[Mode, ...] = get_args(Mode)


def model_call(
    model: BaseModel,
    shape: tuple[int, int],
    *,
    mode: Mode = "predict",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    seed: int = 0,
    inference_mode: bool = True,
) -> Callable[[], Any]:
    """What is timed: a model on one random image.

    Args:
        model: A model of :func:`build_model`.
        shape: Height and width of the image, in pixels. It is its original size too: results have
            this size.
        mode: ``'backbone'`` or ``'forward'``, from the normalized image to feature maps or to
            what the head says; ``'predict'``, from the image to results: normalization,
            padding, network and post-processing.
        dtype: float32, or the type of autocast.
        channels_last: Whether the network gets the image in channels-last memory.
        seed: Seed of the image. For one seed all models get the same.
        inference_mode: Whether PyTorch's inference mode is on; gradients are off in any case.

    Returns:
        A function that runs the model once and returns its results. It raises RuntimeError if the
        model does not run on an image alone.
    """
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    sample_type = SegDataSample if isinstance(model, BaseSegmentor) else DetDataSample

    def preprocess() -> dict[str, Any]:
        # A new sample each time: models leave their results in it.
        sample = sample_type(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1, 1))
        )
        batch = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
        return batch | dict(inputs=batch["inputs"].contiguous(memory_format=memory))

    def predict() -> Any:
        return model(**preprocess(), mode="predict")

    run: Callable[[], Any]
    if mode == "predict":
        run = predict
    elif mode == "forward":
        run = partial(model, **preprocess(), mode="tensor")
    else:
        run = partial(model.backbone, preprocess()["inputs"])

    def call() -> Any:
        autocast = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        try:
            with torch.no_grad(), torch.inference_mode(inference_mode), autocast:
                return run()
        except Exception as error:
            raise RuntimeError(
                f"{type(model).__name__} does not run ({mode}, {dtype}) on nothing but an image "
                f"of {shape[0]}x{shape[1]}: {error}"
            ) from error

    return call
