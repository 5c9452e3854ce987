"""Registered metrics."""

from .clustering_metric import ClusteringMetric
from .coco_boundary_metric import CocoBoundaryMetric

__all__ = ["ClusteringMetric", "CocoBoundaryMetric"]
