"""Models to be timed: from any config of mmdet or mmseg, on a random image, prepared alike."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
