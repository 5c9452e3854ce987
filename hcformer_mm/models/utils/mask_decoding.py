"""Decoding of masks as logits or as probabilities: the two readings of eqs. (4) and (5)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ...ops import decode_hierarchy, decode_points
from ...ops.precision import full_precision

MaskSpace = Literal["logit", "probability"]


def check_mask_space(mask_space: str) -> None:
    """Raise a ValueError unless ``mask_space`` is one of :data:`MaskSpace`."""
    if mask_space not in get_args(MaskSpace):
        raise ValueError(f"expected mask_space among {get_args(MaskSpace)}, got {mask_space!r}")


def decode_mask_logits(
    logits: Tensor, assignments: Sequence[Tensor], mask_space: MaskSpace = "logit"
) -> Tensor:
    r"""Decode mask logits of the coarsest cells to mask logits of the finest level.

    Args:
        logits: Mask logits ``(B, Q, h, w)``.
        assignments: Assignments, finest first.
        mask_space: ``'logit'`` applies eq. (5) to the logits, as the released weights need.
            ``'probability'`` is eqs. (4)-(5) to the letter: it applies :math:`\prod_i A^{(i)}` to
            :math:`\mathrm{Sigmoid}(\cdot)` and returns the logits of the decoded probabilities.

    Returns:
        Mask logits ``(B, Q, H, W)``.
    """
    if mask_space == "logit" or not assignments:
        return decode_hierarchy(logits, assignments)
    # Assignments sum to 1, so the decoded complement is the complement of the decoded probability.
    # Decoding both keeps the logit exact where a probability is within rounding of 1.
    logits = full_precision(logits)
    log_odds = [_log(decode_hierarchy((sign * logits).sigmoid(), assignments)) for sign in (1, -1)]
    return log_odds[0] - log_odds[1]


def mask_logits_at(
    logits: Tensor, assignments: Sequence[Tensor], points: Tensor, mask_space: MaskSpace = "logit"
) -> Tensor:
    """Sample the mask logits of the finest level at points.

    Args:
        logits: Mask logits ``(B, Q, h, w)``.
        assignments: Assignments, finest first.
        points: Points ``(B, P, 2)``; see :func:`~hcformer_mm.ops.decode_points`.
        mask_space: See :func:`decode_mask_logits`.

    Returns:
        Mask logits ``(B, Q, P)``.
    """
    if mask_space == "logit":
        return decode_points(logits, assignments, points)
    # Interpolate logits, as on decoded masks: interpolated probabilities have other logits.
    return decode_points(decode_mask_logits(logits, assignments, mask_space), (), points)


def decode_class_logits(
    logits: Tensor, assignments: Sequence[Tensor], mask_space: MaskSpace = "logit"
) -> Tensor:
    r"""Decode class logits of the coarsest cells to class logits of the finest level.

    Args:
        logits: Class logits ``(B, K, h, w)``; a single channel is a binary mask.
        assignments: Assignments, finest first.
        mask_space: ``'logit'`` applies eq. (5) to the logits. ``'probability'`` applies it to
            :math:`\mathrm{Softmax}_K(\cdot)` and returns the logarithms of the decoded
            probabilities, whose softmax gives these probabilities again.

    Returns:
        Class logits ``(B, K, H, W)``.
    """
    if mask_space == "logit" or not assignments or logits.shape[1] == 1:
        return decode_mask_logits(logits, assignments, mask_space)
    probabilities = full_precision(logits).softmax(dim=1)
    return _log(decode_hierarchy(probabilities, assignments))


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm, finite even where a probability is 0."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
