"""Models to be timed: from any config of mmdet or mmseg, on a random picture, prepared alike."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

Mode = Literal["backbone", "forward", "predict"]
"""The backbone alone; the whole network; the network between pre- and post-processing."""

MODES: tuple[Mode, ...] = get_args(Mode)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    """What is timed: a model on one random picture.

    Args:
        model: A model of :func:`build_model`.
        shape: Height and width of the picture, in pixels. It is its original size too: results have
            this size.
        mode: ``'backbone'`` or ``'forward'``, from the normalised picture to feature maps or to
            what the head says; ``'predict'``, from the picture to results: normalisation,
            padding, network and post-processing.
        dtype: float32, or the type of autocast.
        channels_last: Whether the network gets the picture in channels-last memory.
        seed: Seed of the picture. For one seed all models get the same.
        inference_mode: Whether PyTorch's inference mode is on; gradients are off in any case.

    Returns:
        A function that runs the model once and returns its results. It raises RuntimeError if the
        model does not run on a picture alone.
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randint(256, (3, *shape), dtype=torch.uint8, generator=generator)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    sample_type = SegDataSample if isinstance(model, BaseSegmentor) else DetDataSample

    def preprocess() -> dict[str, Any]:
        # A new sample each time: models leave their results in it.
        sample = sample_type(
            metainfo=dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=(1, 1))
        )
        batch = model.data_preprocessor(dict(inputs=[picture], data_samples=[sample]), False)
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
                f"{type(model).__name__} does not run ({mode}, {dtype}) on nothing but a picture "
                f"of {shape[0]}x{shape[1]}: {error}"
            ) from error

    return call


def keep_queries(model: nn.Module, number: int) -> RemovableHandle:
    """Let a mask transformer say that so many of its queries are objects, whatever it sees.

    With random weights no query is sure of anything, and post-processing has nothing to do. The
    class logits that the head computes are replaced by others as it goes; what it computes stays
    the same. The queries are kept in panoptic post-processing at any threshold up to 0.99.

    Args:
        model: A detector whose ``panoptic_head.cls_embed`` gives class logits ``(..., Q, K + 1)``:
            ours, and mmdet's MaskFormer and Mask2Former.
        number: Number of queries that are kept.

    Returns:
        Its ``remove()`` undoes it.

    Raises:
        ValueError: The model has no such layer, or not so many queries.
    """
    head: Any = getattr(model, "panoptic_head", None)
    layer = getattr(head, "cls_embed", None)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            "expected a detector with a linear panoptic_head.cls_embed to keep queries of, as mask "
            f"transformers have, got {type(model).__name__}"
        )
    queries = head.num_queries
    if number > queries:
        raise ValueError(f"expected at most {queries} queries to keep, got {number}")
    confident = confident_class_logits(queries, number, layer.out_features - 1)

    def replace(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        return confident.to(logits).expand_as(logits)

    return layer.register_forward_hook(replace)


def confident_class_logits(queries: int, kept: int, num_classes: int) -> Tensor:
    """Class logits of queries of which some are sure of a class, and others of "no object".

    Args:
        queries: Number of queries, :math:`Q`.
        kept: How many are sure of a class: evenly spread over the queries, in turn of all classes.
        num_classes: Number of classes, :math:`K`.

    Returns:
        ``(Q, K + 1)``; every query has a probability above 0.99.
    """
    best = torch.full((queries,), num_classes)
    sure = torch.arange(kept) * queries // max(kept, 1)
    # Steps by a number that is coprime to most K, so that few queries meet things and stuff too.
    best[sure] = torch.arange(kept) * 37 % num_classes
    return 20.0 * F.one_hot(best, num_classes + 1)
