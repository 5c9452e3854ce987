"""Decoding of coarse masks to high resolution by assignments: eq. (5)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .neighborhood import channels_first, channels_last, check_assignment, coarse_size, pad_border
from .neighborhood_products import neighborhood_av


def decode(masks: Tensor, assignment: Tensor) -> Tensor:
    r"""Decode masks by one level: every fine pixel mixes its 3×3 candidate cells, eq. (5).

    .. math:: M^{(i)} = A^{(i)} M^{(i+1)}

    Args:
        masks: Coarse maps (logits, probabilities, features), ``(B, Q, h, w)``.
        assignment: Assignment ``(B, 9, H, W)`` of :func:`~hcformer_mm.ops.soft_assign`, with
            ``(h, w) = (⌈H/2⌉, ⌈W/2⌉)``.

    Returns:
        Fine maps ``(B, Q, H, W)`` in the wider of the two dtypes and channels-last memory.

    Raises:
        ValueError: Shapes or devices do not match.

    Example:
        >>> assignment = torch.full((1, 9, 5, 7), 1 / 9)
        >>> decode(torch.randn(1, 20, 3, 4), assignment).shape
        torch.Size([1, 20, 5, 7])
    """
    check_step(masks, assignment)
    dtype = torch.promote_types(masks.dtype, assignment.dtype)
    cells = pad_border(channels_last(masks).to(dtype))
    return channels_first(neighborhood_av(cells, channels_last(assignment).to(dtype)))


def decode_hierarchy(masks: Tensor, assignments: Sequence[Tensor]) -> Tensor:
    r"""Decode masks through all levels, :math:`\prod_i A^{(i)} M` (paper, Sec. 2.3).

    Args:
        masks: Masks of the coarsest cells, ``(B, Q, h, w)``.
        assignments: One assignment ``(B, 9, H_i, W_i)`` per level, **finest first**; may be empty.

    Returns:
        Masks of the finest level, ``(B, Q, H_0, W_0)``; ``masks`` itself if there is no level.

    Raises:
        ValueError: Shapes or devices of adjacent levels do not match.

    Example:
        >>> assignments = [torch.full((1, 9, 6, 8), 1 / 9), torch.full((1, 9, 3, 4), 1 / 9)]
        >>> decode_hierarchy(torch.randn(1, 20, 2, 2), assignments).shape
        torch.Size([1, 20, 6, 8])
    """
    for assignment in reversed(assignments):
        masks = decode(masks, assignment)
    return masks


def check_step(masks: Tensor, assignment: Tensor) -> None:
    """Raise a ValueError unless the assignment can decode the masks by one level."""
    if masks.dim() != 4:
        raise ValueError(f"expected masks (B, Q, h, w), got {tuple(masks.shape)}")
    check_assignment(assignment)
    if masks.shape[0] != assignment.shape[0] or masks.device != assignment.device:
        raise ValueError(
            f"expected masks and assignment of one batch size and device, got {masks.shape[0]} on "
            f"{masks.device} and {assignment.shape[0]} on {assignment.device}"
        )
    expected = coarse_size(*assignment.shape[-2:])
    if tuple(masks.shape[-2:]) != expected:
        raise ValueError(
            f"expected masks of (⌈H/2⌉, ⌈W/2⌉) = {expected} for an assignment of "
            f"{tuple(assignment.shape[-2:])}, got {tuple(masks.shape[-2:])}; "
            "are the assignments ordered finest first?"
        )
