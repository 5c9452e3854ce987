"""Hard labels of every level: the hierarchy of clusters behind the soft assignments.

As the scale of eq. (3) goes to 0, an assignment becomes the arg-max of eq. (2): every fine cell
belongs to exactly one coarse cell. Following that choice from level to level gives a tree, and
cutting the tree at a level gives a clustering of the pixels (paper, Sec. 2.1 and 2.3).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .neighborhood import (
    NUM_CANDIDATES,
    candidate_values,
    channels_last,
    check_assignment,
    coarse_size,
    group_by_parent,
    ungroup,
)


def hard_assignment(assignment: Tensor) -> Tensor:
    r"""Coarse cell that each fine cell belongs to: eq. (2) for a local assignment.

    .. math:: \underset{A \in \{0, 1\}^{N \times N_d}}{\arg\max} \langle A, F^\top F_d \rangle
        \quad \text{s.t.} \quad \sum_m A_{nm} = 1

    Candidates outside the coarse map are excluded by geometry, not by their weights, so the result
    is a valid cell whatever the weights are. Ties go to the first candidate in row-major order.

    Args:
        assignment: ``(B, 9, H, W)``; weights of the row-major 3×3 candidates around the parent
            ``(y // 2, x // 2)`` of each fine cell ``(y, x)``.

    Returns:
        ``(B, H, W)`` int64, the flat row-major index into the coarse map of ``(⌈H/2⌉, ⌈W/2⌉)``.

    Raises:
        ValueError: The shape is not ``(B, 9, H, W)`` with ``H, W >= 1``.

    Example:
        >>> assignment = torch.zeros(1, 9, 2, 4)
        >>> assignment[:, 4, :, :3] = 1  # the parent
        >>> assignment[:, 3, :, 3] = 1  # the cell to its left
        >>> hard_assignment(assignment)
        tensor([[[0, 0, 1, 0],
                 [0, 0, 1, 0]]])
    """
    check_assignment(assignment)
    height, width = assignment.shape[-2:]
    rows, cols = coarse_size(height, width)
    weights = group_by_parent(channels_last(assignment))  # (B, h, 2, w, 2, 9)
    cells = torch.arange(rows * cols, device=assignment.device).view(1, rows, cols)
    candidates = candidate_values(cells, border=-1)[:, :, None, :, None]  # (1, h, 1, w, 1, 9)
    weights = weights.masked_fill(candidates < 0, -torch.inf)
    best = weights.argmax(dim=-1, keepdim=True)  # (B, h, 2, w, 2, 1)
    chosen = candidates.expand_as(weights).gather(-1, best)
    return ungroup(chosen, height, width).squeeze(-1)


def hierarchical_clusters(
    assignments: Sequence[Tensor],
    *,
    image_size: tuple[int, int] | None = None,
    stride: int | None = None,
    output_size: tuple[int, int] | None = None,
    connected: bool = False,
    dense: bool = True,
) -> tuple[Tensor, ...]:
    """Nested label maps of every level: a cluster lies inside one cluster of the next level.

    The label of a pixel at a level is the coarse cell reached by following the hard assignments up
    to that level, so the labels at any finer level determine it.

    Args:
        assignments: Soft assignments, finest first: ``(B, 9, H, W)``, then ``(B, 9, ⌈H/2⌉, ⌈W/2⌉)``
            and so on, the size halving (rounded up) from level to level.
        image_size: ``(h, w)`` of an image whose top-left corner is the top-left corner of the
            finest map. The labels are then of this size: pixel ``(y, x)`` takes the label of cell
            ``(y // stride, x // stride)``, and padding beyond the image is cut off. By default
            there is one label for each cell of the finest map.
        stride: Side in pixels of a cell of the finest map; needed with ``image_size``.
        output_size: ``(h', w')`` of the labels if it differs from ``image_size``: the size of the
            image before it was resized. Each pixel takes the label under its center.
        connected: Split every cluster into its connected parts; pixels that share a side are
            connected. The parts are nested too.
        dense: Number the clusters of each image and level 0, 1, … without gaps, in the order of
            their cells; clusters entirely in the padding are not counted. Otherwise a label is
            the flat row-major index of the cluster's cell in the coarse map of its level. Connected
            parts are always dense, in the order of their first pixels.

    Returns:
        Int64 labels of each level, finest first; ``(B, H, W)``, or ``(B, h, w)`` with
        ``image_size``, or ``(B, h', w')`` with ``output_size``.

    Raises:
        ValueError: There are no assignments, their sizes do not halve, ``image_size`` exceeds the
            map or lacks ``stride``, or the other sizes are given without ``image_size``.

    Example:
        >>> assignments = [torch.rand(1, 9, 6, 8), torch.rand(1, 9, 3, 4)]
        >>> labels = hierarchical_clusters(assignments, image_size=(22, 30), stride=4)
        >>> [tuple(level.shape) for level in labels]
        [(1, 22, 30), (1, 22, 30)]
    """
    _check_hierarchy(assignments)
    labels = [hard_assignment(assignments[0])]
    for assignment in assignments[1:]:
        parent = hard_assignment(assignment).flatten(1)  # (B, cells of this level)
        labels.append(parent.gather(1, labels[-1].flatten(1)).view_as(labels[0]))
    pixels: tuple[Any, ...] = (...,)
    if image_size is not None:
        _check_image(image_size, stride, labels[0].shape[-2:])
        # Number the cells that the image covers once, then repeat the labels for their pixels.
        (rows, row_of), (cols, col_of) = (
            cells_under(side, size, stride, labels[0].device).unique_consecutive(True)
            for side, size in zip(output_size or image_size, image_size, strict=True)
        )
        labels = [label[:, rows[:, None], cols] for label in labels]
        pixels = (slice(None), row_of[:, None], col_of)
    elif stride is not None or output_size is not None:
        raise ValueError(
            "expected image_size together with stride and output_size, got "
            f"stride={stride} and output_size={output_size} only"
        )
    if connected or dense:
        labels = [connected_parts(label) if connected else relabel(label) for label in labels]
    return tuple(label[pixels] for label in labels)


def connected_parts(labels: Tensor) -> Tensor:
    """Split equally labeled pixels into connected parts; pixels that share a side are connected.

    Args:
        labels: ``(B, H, W)`` integers.

    Returns:
        ``(B, H, W)`` int64; the parts of each image numbered 0, 1, … in the order of their first
        pixels, row by row.
    """
    # Union-find; at first, the root of a pixel is the first pixel of its run in the row.
    starts = F.pad(labels[..., 1:] != labels[..., :-1], (1, 0), value=True)
    index = torch.arange(labels.numel(), device=labels.device).view_as(labels)
    root = index.masked_fill(~starts, 0).flatten().cummax(0).values
    joins = (labels[:, 1:] == labels[:, :-1]) & (starts[:, 1:] | starts[:, :-1])
    lower = index[:, 1:][joins]
    one, other = root[lower - labels.shape[-1]], root[lower]
    while len(one):
        root.scatter_reduce_(0, torch.maximum(one, other), torch.minimum(one, other), "amin")
        while not torch.equal(above := root[root], root):
            root = above
        one, other = root[one], root[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return relabel(root.view_as(labels) - index[:, :1, :1])


def relabel(labels: Tensor) -> Tensor:
    """Number the labels of each item of a batch 0, 1, … without gaps, keeping their order.

    Args:
        labels: ``(B, …)`` integers, at least 0. Memory grows with the largest label.

    Returns:
        Int64 of the same shape; equal where ``labels`` are equal, within an item.

    Raises:
        ValueError: Labels are negative or not integers.
    """
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected integer labels, got {labels.dtype}")
    if labels.numel() == 0:
        return labels.long()
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0:
        raise ValueError(f"expected labels >= 0, got {low}; mark ignored pixels separately")
    flat = labels.flatten(1).long()
    used = torch.zeros(flat.shape[0], high + 1, dtype=torch.long, device=flat.device)
    used.scatter_(1, flat, 1)
    rank = used.cumsum(1) - 1
    return rank.gather(1, flat).view(labels.shape)


def cells_under(
    pixels: int, size: int, stride: int | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Cell under the center of each pixel along one side of the original image.

    Args:
        pixels: Pixels along the side of the original image.
        size: Pixels along the side of the resized image that the network sees.
        stride: Side of a cell in pixels of the resized image; None for 1.
        device: Device of the result.

    Returns:
        Index of the cell along the side, int64 ``(pixels,)``, nondecreasing.
    """
    # In integers: (i + 1/2) * size / pixels, rounded down.
    centers = (2 * torch.arange(pixels, device=device) + 1) * size // (2 * pixels)
    return centers // (stride or 1)


def _check_image(image_size: tuple[int, int], stride: int | None, map_size: Sequence[int]) -> None:
    if stride is None or stride < 1:
        raise ValueError(
            f"expected stride >= 1, the side in pixels of a cell of the finest map, got {stride}"
        )
    covered = (map_size[0] * stride, map_size[1] * stride)
    if min(image_size) < 1 or image_size[0] > covered[0] or image_size[1] > covered[1]:
        raise ValueError(
            f"expected an image of at most {covered}, the area that a map of {tuple(map_size)} "
            f"covers at stride {stride}, got {tuple(image_size)}"
        )


def _check_hierarchy(assignments: Sequence[Tensor]) -> None:
    if isinstance(assignments, Tensor) or len(assignments) == 0:
        got = "a tensor" if isinstance(assignments, Tensor) else "none"
        raise ValueError(f"expected a sequence of assignments, finest first, got {got}")
    for level, assignment in enumerate(assignments):
        check_assignment(assignment, f"assignments[{level}]")
        if level == 0:
            continue
        finer = assignments[level - 1].shape
        expected = (finer[0], NUM_CANDIDATES, *coarse_size(*finer[-2:]))
        if tuple(assignment.shape) != expected:
            raise ValueError(
                f"expected assignments[{level}] of {expected}, half the size of the level before "
                f"it (finest first), got {tuple(assignment.shape)}"
            )
