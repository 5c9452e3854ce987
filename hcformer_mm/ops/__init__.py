"""Clustering and decoding as pure functions of tensors, on PyTorch alone."""

from .assignment import soft_assign, soft_assign_maps
from .clusters import hard_assignment, hierarchical_clusters
from .decoding import decode, decode_hierarchy
from .feature_projection import FeatureProjection
from .points import decode_points

__all__ = [
    "FeatureProjection",
    "decode",
    "decode_hierarchy",
    "decode_points",
    "hard_assignment",
    "hierarchical_clusters",
    "soft_assign",
    "soft_assign_maps",
]
