"""Semantic segmentation from masks with classes: what every head of mask classification shares."""

import torch
from torch import Tensor


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Sum up masks by class: softmax(class)ᵀ · sigmoid(mask).

    Args:
        class_logits: Class logits of the queries, the last class being "no object",
            ``(..., Q, K + 1)``.
        mask_logits: Mask logits of the queries, ``(..., Q, H, W)``.

    Returns:
        Scores of the classes, ``(..., K, H, W)``, not negative.
    """
    probabilities = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("...qk,...qhw->...khw", probabilities, mask_logits.sigmoid())
