"""Datasets, ground truth and checks of annotations; registers the Shapes set in three forms."""

from .shapes import ShapesInstanceDataset, ShapesPanopticDataset, ShapesSemanticDataset

__all__ = ["ShapesInstanceDataset", "ShapesPanopticDataset", "ShapesSemanticDataset"]
