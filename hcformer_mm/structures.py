"""What a clustering backbone hands to necks and heads, and what is kept of it for one image."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .ops import hierarchical_clusters
from .ops.neighbourhood import coarse_size

LabelSize = Literal["image", "input", "cells"]
"""Which size label maps have: of the image as it was given, as the network saw it, of the map."""


class ClusteredFeatures(tuple[Tensor, ...]):
    """Feature maps of a backbone together with the hierarchical clustering of its pixels.

    It *is* the tuple of feature maps, so that every head and neck can index it as it does any
    backbone's output; those that know of clusters read the attributes too.

    Attributes:
        assignments: One assignment ``(B, 9, H_i, W_i)`` per clustered downsampling, ordered like
            the feature maps: finest first. Empty without clustering.
        scales: The scale parameters of the same levels, each of one element; what the regulariser
            of the training loss sums up (paper, Sec. 4.1).
    """

    assignments: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]

    def __new__(
        cls,
        feature_maps: Iterable[Tensor],
        *,
        assignments: Sequence[Tensor],
        scales: Sequence[Tensor],
    ) -> "ClusteredFeatures":
        """Build from feature maps and the clustering of their levels.

        Both are asked for, so that code which rebuilds a tuple from its items alone (as some
        wrappers of modules do) fails instead of losing the clustering.

        Raises:
            ValueError: There are not as many assignments as scales, or a level does not lie
                under the one before it.
        """
        if len(assignments) != len(scales):
            raise ValueError(
                f"expected one scale per assignment, got {len(assignments)} assignments and "
                f"{len(scales)} scales"
            )
        for fine, coarse in pairwise(assignments):
            expected = coarse_size(*fine.shape[-2:])
            if tuple(coarse.shape[-2:]) != expected:
                raise ValueError(
                    "expected assignments ordered finest first, each level half of the one before: "
                    f"{expected} under {tuple(fine.shape[-2:])}, got {tuple(coarse.shape[-2:])}"
                )
        features = super().__new__(cls, feature_maps)
        features.assignments = tuple(assignments)
        features.scales = tuple(scales)
        return features

    def replace(self, feature_maps: Iterable[Tensor]) -> "ClusteredFeatures":
        """Other feature maps with the same clustering: what a neck returns."""
        return ClusteredFeatures(feature_maps, assignments=self.assignments, scales=self.scales)


@dataclass(frozen=True)
class ImageClusters:
    """The hierarchical clustering of one image.

    Attributes:
        assignments: Soft assignment ``(9, H_i, W_i)`` of every level, finest first, of the image as
            it was padded.
        stride: Side in pixels of a cell of the finest map.
        input_size: Height and width of the image as the network saw it, without padding.
        image_size: Height and width of the image as it was given, before it was resized.
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
        """Label maps of every level, nested, numbered from 0 without gaps.

        See :func:`~hcformer_mm.ops.hierarchical_clusters`.

        Args:
            size: ``'image'``: of the image as it was given. ``'input'``: as the network saw it.
                ``'cells'``: of the finest map, padding included.
            connected: Whether the connected parts of a cluster are clusters of their own.

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
        """The same on another device; the signature is that of ``torch.Tensor.to``."""
        copy = bool(kwargs.get("copy", False))
        moved = tuple(assignment.to(device, copy=copy) for assignment in self.assignments)
        return replace(self, assignments=moved)

    def cpu(self) -> "ImageClusters":
        """The same on the CPU."""
        return self.to("cpu")
