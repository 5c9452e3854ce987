"""In which space masks are decoded: the two readings of eqs. (4) and (5)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..ops import decode_hierarchy

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
        mask_space: ``'logit'`` applies eq. (5) to the logits, as the released weights need it.
            ``'probability'`` is eqs. (4)-(5) to the letter: :math:`\prod_i A^{(i)}` is applied to
            :math:`\mathrm{Sigmoid}(\cdot)`, and the logits of the decoded probabilities are
            returned.

    Returns:
        Mask logits ``(B, Q, H, W)``.
    """
    if mask_space == "logit" or not assignments:
        return decode_hierarchy(logits, assignments)
    # An assignment sums to 1, so the complement of a decoded probability is the decoded complement;
    # decoding both keeps the logit exact where a probability is within rounding of 1.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tiny = torch.finfo(logits.dtype).tiny
    log_odds = [
        decode_hierarchy((sign * logits).sigmoid(), assignments).clamp_min(tiny).log()
        for sign in (1, -1)
    ]
    return log_odds[0] - log_odds[1]
