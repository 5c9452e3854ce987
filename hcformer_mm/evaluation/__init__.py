"""Metrics that OpenMMLab lacks, and error attribution."""

from .error_attribution import ErrorAttribution
from .metrics.clustering_metric import ClusteringMetric
from .metrics.coco_boundary_metric import CocoBoundaryMetric

__all__ = ["ClusteringMetric", "CocoBoundaryMetric", "ErrorAttribution"]
