"""Registered metrics."""

from .clustering_metric import ClusteringMetric
from .coco_boundary_metric import CocoBoundaryMetric
from .coco_panoptic_metric import CocoPanopticMetric

__all__ = ["ClusteringMetric", "CocoBoundaryMetric", "CocoPanopticMetric"]
