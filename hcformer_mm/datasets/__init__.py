"""Datasets that OpenMMLab lacks: the embedded Shapes set, in three forms."""

from .shapes import ShapesInstanceDataset, ShapesPanopticDataset, ShapesSemanticDataset

__all__ = ["ShapesInstanceDataset", "ShapesPanopticDataset", "ShapesSemanticDataset"]
