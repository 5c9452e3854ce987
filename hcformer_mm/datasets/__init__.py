"""The embedded Shapes dataset, registered in three forms."""

from .shapes import ShapesInstanceDataset, ShapesPanopticDataset, ShapesSemanticDataset

__all__ = ["ShapesInstanceDataset", "ShapesPanopticDataset", "ShapesSemanticDataset"]
