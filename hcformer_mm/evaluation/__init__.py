"""Metrics that OpenMMLab lacks."""

from .blame import Blame
from .clustering_metric import ClusteringMetric
from .coco_boundary_metric import CocoBoundaryMetric

__all__ = ["Blame", "ClusteringMetric", "CocoBoundaryMetric"]
