"""Metrics that OpenMMLab lacks."""

from .coco_boundary_metric import CocoBoundaryMetric

__all__ = ["CocoBoundaryMetric"]
