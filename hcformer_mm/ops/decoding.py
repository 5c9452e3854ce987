"""Decoding of coarse masks to high resolution by the assignments: eq. (5)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .bands import bands
from .neighbourhood import (
    BACKWARD_COPIES,
    NUM_CANDIDATES,
    add_to_neighbours,
    around,
    channels_first,
    channels_last,
    check_assignment,
    coarse_size,
    four_pixels,
    merge_windows,
    neighbours,
    shifted,
    windows,
)


def decode(masks: Tensor, assignment: Tensor) -> Tensor:
    r"""Bring masks one level up: every fine pixel mixes its 3×3 candidate cells, eq. (5).

    .. math:: M^{(i)} = A^{(i)} M^{(i+1)}

    Args:
        masks: Coarse maps of any meaning (logits, probabilities, features), ``(B, Q, h, w)``.
        assignment: Assignment ``(B, 9, H, W)`` of :func:`~hcformer_mm.ops.soft_assign`, with
            ``(h, w) = (⌈H/2⌉, ⌈W/2⌉)``.

    Returns:
        Fine maps ``(B, Q, H, W)`` in the wider dtype of the two and channels-last memory (a part
        of it at odd sizes).

    Raises:
        ValueError: The shapes or devices do not fit each other.
    """
    check_step(masks, assignment)
    height, width = assignment.shape[-2:]
    dtype = torch.promote_types(masks.dtype, assignment.dtype)
    weights = windows(channels_last(assignment).to(dtype))  # (B, h, 2, w, 2, 9)
    cells = channels_last(masks).to(dtype)  # (B, h, w, Q)
    needs_grad = torch.is_grad_enabled() and (cells.requires_grad or weights.requires_grad)
    fine = _Decode.apply(cells, weights) if needs_grad else _mix(cells, weights)
    return channels_first(merge_windows(fine, height, width))


def _mix(cells: Tensor, weights: Tensor) -> Tensor:
    """Eq. (5) on windows: cells ``(B, h, w, Q)``, weights ``(B, h, 2, w, 2, 9)``."""
    parts = _bands(cells)
    if len(parts) == 1:
        return _mix_rows(shifted(cells), weights)
    padded = F.pad(cells, (0, 0, 1, 1, 1, 1))
    fine = cells.new_empty(*weights.shape[:5], cells.shape[3])
    for rows in parts:
        _mix_rows(neighbours(padded[:, around(rows)]), weights[:, rows], fine[:, rows])
    return fine


def _bands(cells: Tensor, copies: int = 1) -> list[slice]:
    batch, rows, cols, channels = cells.shape
    fine = (batch, rows, 4 * cols, channels)  # the pixels of a row of cells
    return bands(fine, cells.device, copies=copies)


def _mix_rows(taps: Sequence[Tensor], weights: Tensor, out: Tensor | None = None) -> Tensor:
    # Nine shifted multiply-adds read and write whole rows of channels; gathering the candidates for
    # a matrix product would first write nine times the coarse map.
    taps = [tap[:, :, None, :, None] for tap in taps]
    fine = torch.mul(weights[..., :1], taps[0], out=out)  # (B, h, 2, w, 2, Q)
    for k in range(1, NUM_CANDIDATES):
        fine.addcmul_(weights[..., k : k + 1], taps[k])
    return fine


class _Decode(torch.autograd.Function):
    """:func:`_mix` with a backward pass of matrix products; it saves nothing of its own."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(cells, weights)
        return _mix(cells, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        cells, weights = ctx.saved_tensors
        padded = F.pad(cells, (0, 0, 1, 1, 1, 1))
        grad_padded, grad_weights = torch.zeros_like(padded), []
        for rows in _bands(cells, BACKWARD_COPIES):
            # Both gradients are sums over long axes, which matrix products do in one pass.
            grad_rows = four_pixels(grad[:, rows])  # (B·r·w, 4, Q)
            if ctx.needs_input_grad[0]:
                taps = torch.bmm(four_pixels(weights[:, rows]).transpose(1, 2), grad_rows)
                add_to_neighbours(grad_padded[:, around(rows)], taps)
            if ctx.needs_input_grad[1]:
                taps = torch.stack(neighbours(padded[:, around(rows)]), dim=3).flatten(0, 2)
                part = torch.bmm(grad_rows, taps.transpose(1, 2))  # (B·r·w, 4, 9)
                shape = (*grad[:, rows].shape[:2], cells.shape[2], 2, 2, NUM_CANDIDATES)
                grad_weights.append(part.view(shape).transpose(2, 3))
        return (
            grad_padded[:, 1:-1, 1:-1] if ctx.needs_input_grad[0] else None,
            torch.cat(grad_weights, dim=1) if grad_weights else None,
        )


def decode_hierarchy(masks: Tensor, assignments: Sequence[Tensor]) -> Tensor:
    r"""Bring masks through all levels, :math:`\prod_i A^{(i)} M` (paper, Sec. 2.3).

    Args:
        masks: Masks of the coarsest cells, ``(B, Q, h, w)``.
        assignments: One assignment ``(B, 9, H_i, W_i)`` per level, **finest first**; may be empty.

    Returns:
        Masks of the finest level, ``(B, Q, H_0, W_0)``; ``masks`` itself if there is no level.

    Raises:
        ValueError: A level does not fit the level above it.
    """
    for assignment in reversed(assignments):
        masks = decode(masks, assignment)
    return masks


def check_step(masks: Tensor, assignment: Tensor) -> None:
    """Raise a ValueError unless an assignment leads one level down from masks."""
    if masks.dim() != 4:
        raise ValueError(f"expected masks (B, Q, h, w), got {tuple(masks.shape)}")
    check_assignment(assignment)
    if masks.shape[0] != assignment.shape[0]:
        raise ValueError(
            f"expected masks and assignment of one batch size, got {masks.shape[0]} and "
            f"{assignment.shape[0]}"
        )
    expected = coarse_size(*assignment.shape[-2:])
    if tuple(masks.shape[-2:]) != expected:
        raise ValueError(
            f"expected masks of (⌈H/2⌉, ⌈W/2⌉) = {expected} for an assignment of "
            f"{tuple(assignment.shape[-2:])}, got {tuple(masks.shape[-2:])}; "
            "are the assignments ordered finest first?"
        )
    if masks.device != assignment.device:
        raise ValueError(
            f"expected masks and assignment on one device, got {masks.device} and "
            f"{assignment.device}"
        )
