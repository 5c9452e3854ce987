"""The 3×3 neighborhood that assignment and decoding share (paper, Sec. 2.4 and Fig. 3).

A fine pixel ``(y, x)`` has the parent cell ``(y // 2, x // 2)``; its candidates are the parent and
the eight cells around it, row-major. Tensors are channels-last, ``(B, H, W, C)``: the channels of a
pixel lie together in memory. Many functions expect cells that are padded by one cell on each side.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NUM_CANDIDATES = 9
"""Number of candidates of a fine pixel: the cells of a 3×3 neighborhood."""


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """Size of the coarse map for a fine map: half of each side, rounded up."""
    return (height + 1) // 2, (width + 1) // 2


def channels_last(x: Tensor) -> Tensor:
    """View ``(B, C, H, W)`` as contiguous ``(B, H, W, C)``; copy unless it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous()


def channels_first(x: Tensor) -> Tensor:
    """View ``(B, H, W, C)`` as ``(B, C, H, W)`` in channels-last memory."""
    return x.permute(0, 3, 1, 2)


def group_by_parent(fine: Tensor) -> Tensor:
    """Group fine pixels by parent: ``(B, H, W, C)`` → ``(B, h, 2, w, 2, C)``.

    An odd height or width is padded with zeros, which :func:`ungroup` cuts off again.
    """
    batch, height, width, channels = fine.shape
    rows, cols = coarse_size(height, width)
    if (height, width) != (2 * rows, 2 * cols):
        fine = F.pad(fine, (0, 0, 0, 2 * cols - width, 0, 2 * rows - height))
    return fine.reshape(batch, rows, 2, cols, 2, channels)


def ungroup(grouped: Tensor, height: int, width: int) -> Tensor:
    """Undo :func:`group_by_parent`: ``(B, h, 2, w, 2, C)`` → ``(B, H, W, C)``."""
    batch, rows, _, cols, _, channels = grouped.shape
    return grouped.reshape(batch, 2 * rows, 2 * cols, channels)[:, :height, :width]


def pad_border(cells: Tensor) -> Tensor:
    """Pad cells ``(B, h, w, C)`` with one zero cell on each side: ``(B, h + 2, w + 2, C)``."""
    return F.pad(cells, (0, 0, 1, 1, 1, 1))


def shift_neighbors(padded: Tensor) -> list[Tensor]:
    """Nine shifted views ``(B, h, w, C)`` of padded cells: one per candidate, row-major."""
    rows, cols = padded.shape[1] - 2, padded.shape[2] - 2
    return [padded[:, dy : dy + rows, dx : dx + cols] for dy in range(3) for dx in range(3)]


def parent_rows(rows: slice) -> slice:
    """Rows of the parents of fine rows; the first fine row must be even."""
    return slice(rows.start // 2, (rows.stop + 1) // 2)


def candidate_rows(rows: slice) -> slice:
    """Rows of padded cells that hold the candidates of fine rows; the first must be even."""
    parents = parent_rows(rows)
    return slice(parents.start, parents.stop + 2)


def candidate_values(cells: Tensor, border: float) -> Tensor:
    """Values of the nine candidates of every cell: ``(B, h, w)`` → ``(B, h, w, 9)``.

    ``border`` is the value of a candidate outside the map.
    """
    return torch.stack(shift_neighbors(F.pad(cells, (1, 1, 1, 1), value=border)), dim=-1)


def repeat_for_children(cells: Tensor, height: int, width: int) -> Tensor:
    """Give every fine pixel the values of its parent: ``(B, h, w, C)`` → ``(B, H, W, C)``."""
    return ungroup(cells[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1), height, width)


def check_assignment(assignment: Tensor, name: str = "assignment") -> None:
    """Raise a ValueError unless an assignment is ``(B, 9, H, W)``."""
    shape = tuple(assignment.shape)
    if len(shape) != 4 or shape[1] != NUM_CANDIDATES or min(shape[2:]) < 1:
        raise ValueError(
            f"expected {name} of (B, {NUM_CANDIDATES}, H, W) with H, W >= 1, got {shape}"
        )
