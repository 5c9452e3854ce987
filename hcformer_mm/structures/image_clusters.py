"""ImageClusters: the hierarchical clustering of one image."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..ops import hierarchical_clusters

LabelSize = Literal["image", "input", "cells"]
"""Size of label maps: the original image, the resized image without padding, or the finest map."""


@dataclass(frozen=True)
class ImageClusters:
    """The hierarchical clustering of one image.

    Attributes:
        assignments: Soft assignment ``(9, H_i, W_i)`` of every level of the padded image, finest
            first.
        stride: Side in pixels of a cell of the finest map.
        input_size: Height and width of the resized image that the network saw, without padding.
        image_size: Height and width of the original image.
    """

    assignments: tuple[Tensor, ...]
    stride: int
    input_size: tuple[int, int]
    image_size: tuple[int, int]

    @property
    def num_levels(self) -> int:
        """Number of levels of the hierarchy."""
        return len(self.assignments)

    def labels(self, size: LabelSize = "image", *, connected: bool = False) -> tuple[Tensor, ...]:
        """Nested label maps of every level, numbered from 0 without gaps.

        See :func:`~hcformer_mm.ops.hierarchical_clusters`.

        Args:
            size: ``'image'`` for the size of the original image, ``'input'`` for the size of the
                resized image, ``'cells'`` for the finest map, padding included.
            connected: Split every cluster into its connected parts.

        Returns:
            Int64 ``(H, W)`` of every level, finest first.
        """
        batch = hierarchical_clusters(
            [assignment[None] for assignment in self.assignments],
            image_size=None if size == "cells" else self.input_size,
            stride=None if size == "cells" else self.stride,
            output_size=self.image_size if size == "image" else None,
            connected=connected,
        )
        return tuple(labels[0] for labels in batch)

    def to(self, device: torch.device | str, *args: object, **kwargs: object) -> "ImageClusters":
        """Return a copy on another device; MMEngine calls this with arguments of ``Tensor.to``."""
        copy = bool(kwargs.get("copy", False))
        moved = tuple(assignment.to(device, copy=copy) for assignment in self.assignments)
        return replace(self, assignments=moved)

    def cpu(self) -> "ImageClusters":
        """Return a copy on the CPU."""
        return self.to("cpu")
