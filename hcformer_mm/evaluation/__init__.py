"""Metrics that OpenMMLab lacks."""

from .error_attribution import Blame
from .metrics.clustering_metric import ClusteringMetric
from .metrics.coco_boundary_metric import CocoBoundaryMetric

__all__ = ["Blame", "ClusteringMetric", "CocoBoundaryMetric"]
