"""ClusteredFeatures: what a clustering backbone hands to necks and heads."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..ops.neighborhood import coarse_size


class ClusteredFeatures(tuple[Tensor, ...]):
    """Feature maps of a backbone, with the hierarchical clustering of its pixels.

    It *is* the tuple of feature maps, so every head and neck can index it like the output of any
    backbone; modules that decode clusters read the attributes.

    Attributes:
        assignments: One assignment ``(B, 9, H_i, W_i)`` per clustered downsampling, finest first
            like the feature maps. Empty without clustering.
        scales: Scale of each level, tensors of one element. The regularizer of the training loss
            sums them (paper, Sec. 4.1).
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

        The clustering has no default: wrappers that rebuild a tuple from its items then fail,
        instead of losing it.

        Raises:
            ValueError: The numbers of assignments and scales differ, or a level is not half the
                size of the one before.
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
        """Return other feature maps with the same clustering, as a neck does."""
        return ClusteredFeatures(feature_maps, assignments=self.assignments, scales=self.scales)


def require_clustering(features: Any) -> ClusteredFeatures:
    """Return the features of a backbone, which must carry a clustering.

    Raises:
        TypeError: They are not :class:`ClusteredFeatures`; the message says how to get these.
    """
    if not isinstance(features, ClusteredFeatures):
        raise TypeError(
            f"expected ClusteredFeatures of an HCBackbone, got {type(features).__name__}; wrap the "
            "backbone: backbone=dict(type='hcformer_mm.HCBackbone', backbone=dict(...))"
        )
    return features
