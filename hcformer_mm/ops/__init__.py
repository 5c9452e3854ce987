"""Clustering and decoding as pure functions of tensors; imports nothing of OpenMMLab."""

from .assignment import soft_assign, soft_assign_maps
from .clusters import hard_assignment, hierarchical_clusters
from .decoding import decode, decode_hierarchy
from .embedding import Embedding
from .points import decode_points

__all__ = [
    "Embedding",
    "decode",
    "decode_hierarchy",
    "decode_points",
    "hard_assignment",
    "hierarchical_clusters",
    "soft_assign",
    "soft_assign_maps",
]
