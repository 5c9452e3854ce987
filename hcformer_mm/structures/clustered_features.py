"""What a clustering backbone hands to necks and heads, and what is kept of it for one image."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from ..ops.neighborhood import coarse_size


class ClusteredFeatures(tuple[Tensor, ...]):
    """Feature maps of a backbone together with the hierarchical clustering of its pixels.

    It *is* the tuple of feature maps, so that every head and neck can index it as it does any
    backbone's output; those that know of clusters read the attributes too.

    Attributes:
        assignments: One assignment ``(B, 9, H_i, W_i)`` per clustered downsampling, ordered like
            the feature maps: finest first. Empty without clustering.
        scales: The scale parameters of the same levels, each of one element; what the regularizer
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
