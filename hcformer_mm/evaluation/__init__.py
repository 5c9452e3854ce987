"""Metrics that OpenMMLab lacks, and error attribution."""

from .error_attribution import ErrorAttribution
from .metrics import ClusteringMetric, CocoBoundaryMetric, CocoPanopticMetric

__all__ = ["ClusteringMetric", "CocoBoundaryMetric", "CocoPanopticMetric", "ErrorAttribution"]
