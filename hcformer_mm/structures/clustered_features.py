"""ClusteredFeatures: the output of a clustering backbone, which necks and heads read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from ..ops.neighborhood import coarse_size


# FSDP takes a tuple that is a dataclass for a dataclass, and rebuilds it by its fields.
@dataclass(init=False, repr=False, eq=False)
class ClusteredFeatures(tuple[Tensor, ...]):
    """Feature maps of a backbone, with the hierarchical clustering of its pixels.

    It *is* the tuple of feature maps, so every head and neck can index it like the output of any
    backbone; modules that decode clusters read the attributes. It is also a dataclass and a pytree
    node with three children, so FSDP, ``torch.export`` and ``torch.func`` reach all its tensors.

    Attributes:
        feature_maps: The maps as a plain tuple.
        assignments: One assignment ``(B, 9, H_i, W_i)`` per clustered downsampling, finest first
            like the feature maps. Empty without clustering.
        scales: Scale of each level, tensors of one element. The regularizer of the training loss
            sums them (paper, Sec. 4.1).
    """

    feature_maps: tuple[Tensor, ...]
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

        ``assignments`` and ``scales`` have no defaults, so that code which rebuilds the tuple from
        its items fails instead of losing the clustering.

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
        return _assemble(feature_maps, assignments, scales)

    def replace(self, feature_maps: Iterable[Tensor]) -> "ClusteredFeatures":
        """Return new feature maps with the clustering of this instance, as a neck does."""
        return ClusteredFeatures(feature_maps, assignments=self.assignments, scales=self.scales)


def _assemble(
    feature_maps: Iterable[Any], assignments: Iterable[Any], scales: Iterable[Any]
) -> ClusteredFeatures:
    """Build without checks: pytrees may hold anything in place of the tensors."""
    features = tuple.__new__(ClusteredFeatures, feature_maps)
    features.feature_maps = tuple(features)
    features.assignments = tuple(assignments)
    features.scales = tuple(scales)
    return features


pytree.register_pytree_node(
    ClusteredFeatures,
    lambda features: ([features.feature_maps, features.assignments, features.scales], None),
    lambda children, context: _assemble(*children),
    serialized_type_name="hcformer_mm.ClusteredFeatures",
)


def require_clustering(features: Any) -> ClusteredFeatures:
    """Return ``features`` if they carry a clustering.

    Raises:
        TypeError: ``features`` are not :class:`ClusteredFeatures`.
    """
    if not isinstance(features, ClusteredFeatures):
        raise TypeError(
            f"expected ClusteredFeatures from HCBackbone, got {type(features).__name__}; wrap the "
            "backbone: backbone=dict(type='hcformer_mm.HCBackbone', backbone=dict(...))"
        )
    return features
